// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Links calls f with the path and the text of each link below a directory, as which a node's
// hint has its entries. The directory may be missing.
func Links(dir string, f func(path, text string) error) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type() != fs.ModeSymlink {
			return err
		}
		text, err := os.Readlink(path)
		if err != nil {
			return err
		}
		return f(path, text)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Relink makes a link point at another text.
func Relink(path, text string) error { return errors.Join(os.Remove(path), os.Symlink(text, path)) }

// Reboot makes the hint below a directory one of before the node's last start. The links are
// new then: what asks for their age has to be told another one.
func Reboot(dir string) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	id := strings.TrimSpace(string(boot))
	short := " " + id[:8] + " " // in the record of a claim
	return Links(dir, func(path, text string) error {
		before := strings.Replace(strings.Replace(text, "/"+id, "/an-earlier-one", 1), short, " earlier ", 1)
		if before == text {
			return nil
		}
		return Relink(path, before)
	})
}
