// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package install puts the plugin on a host, keeps it there, and takes it away
// again; and keeps a token for it where the kubelet's credentials cannot be used.
package install

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/crd-ipam/crd-ipam/pkg/cni"
)

// tempMark is in the name of every file that is not in its place yet.
const tempMark = ".crd-ipam-tmp-"

// copySize is how much of a file is written at a time. The kernel keeps it in memory in pieces as
// large as it was written, and the plugin, which starts for each call, needs up to a tenth less CPU
// time to start from large ones.
const copySize = 1 << 20

// WriteFile puts data at path in one piece: whoever opens it finds the old
// content or the new, also after the power was cut.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	return place(path, bytes.NewReader(data), mode, nil)
}

// place puts content at path by a file beside it and a rename. check, where it is
// not nil, looks at the file before it gets there.
func place(path string, content io.Reader, mode fs.FileMode, check func(tmp string) error) (err error) {
	dir := filepath.Dir(path)
	if info, err := os.Lstat(path); err == nil && info.IsDir() {
		return fmt.Errorf("%s is a directory, and a file belongs there: move it away, or delete it", path)
	}
	if err := removeTemps(path); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+tempMark)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	// Written by itself, and not by copy_file_range, a page at a time: see copySize.
	_, err = io.CopyBuffer(struct{ io.Writer }{tmp}, struct{ io.Reader }{content}, make([]byte, copySize))
	// Chmod: what the umask took away is part of the mode.
	if err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if check != nil {
		if err := check(tmp.Name()); err != nil {
			return err
		}
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// readRegular reads a regular file. It does not hang where somebody has put a pipe.
func readRegular(path string) ([]byte, error) {
	f, err := cni.OpenRegular(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(f)
}

// removeTemps removes what a process that was killed has left.
func removeTemps(path string) error {
	dir := filepath.Dir(path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "."+filepath.Base(path)+tempMark) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// syncDir makes a rename last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
