// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"os"
	"syscall"
	"time"
)

// sums are what fileSum has returned of files, for as long as nobody has written to them: the plugin
// has 15 MB, and is looked at every minute. Not for several goroutines.
type sums map[string]knownSum

type knownSum struct {
	of  identity
	sum string
}

// identity changes when a file is replaced or written to: nobody can set its ctime. What somebody
// writes through a shared mapping may change it late.
type identity struct {
	dev, ino uint64
	size     int64
	ctime    time.Time
}

// granularity is how far apart two changes of a file may be and have the same ctime, on the file
// systems that know only seconds.
const granularity = 2 * time.Second

// of is fileSum. If the file is replaced meanwhile, the sum is remembered for one that is gone.
func (s *sums) of(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	id := identityOf(info)
	if known, found := (*s)[path]; found && known.of == id {
		return known.sum, nil
	}
	began := time.Now()
	sum, err := fileSum(path)
	if err == nil && began.Sub(id.ctime) > granularity { // what is written after that has another ctime
		if *s == nil {
			*s = sums{}
		}
		(*s)[path] = knownSum{id, sum}
	}
	return sum, err
}

func identityOf(info os.FileInfo) identity {
	stat := info.Sys().(*syscall.Stat_t)
	return identity{uint64(stat.Dev), stat.Ino, stat.Size, time.Unix(stat.Ctim.Unix())} //nolint:unconvert // Dev is an int on others
}
