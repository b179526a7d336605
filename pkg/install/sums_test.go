// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A file is read again when somebody has written to it, whatever he did to its times.
func TestSums(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nv-ipam")
	ctime := func() time.Time {
		info, err := os.Stat(path)
		if err != nil {
			return time.Time{}
		}
		return identityOf(info).ctime
	}
	write := func(text string, mtime time.Time) {
		t.Helper()
		for before := ctime(); before.Equal(ctime()); { // until the file system's clock has moved on
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(path, mtime, mtime); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := sums{}
	check := func(want string) {
		t.Helper()
		got, err := s.of(path)
		if err != nil || got != dataSum([]byte(want)) {
			t.Errorf("got %q, %v, want that of %q", got, err, want)
		}
	}
	at := time.Now().Add(-time.Hour)
	write("one", at)
	check("one")
	if len(s) != 0 {
		t.Error("a file that was written this moment may be written again with the same ctime, and is remembered")
	}

	known := func() {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		s[path] = knownSum{identityOf(info), "remembered"}
		if got, err := s.of(path); err != nil || got != "remembered" {
			t.Errorf("got %q, %v: a file that nobody has written to is read again", got, err)
		}
	}
	known()
	write("two", at) // of the same size, with the same mtime
	check("two")

	known()
	other := path + "-other"
	if err := os.WriteFile(other, []byte("six"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	check("six")

	known()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := s.of(path); !os.IsNotExist(err) {
		t.Errorf("got %v of a file that is gone", err)
	}
}
