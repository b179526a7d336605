// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// list opens a directory of the hint, for the caller to close, and reads its names.
// If it is not there, or is no directory, nothing could be entered: then there is
// nothing to close and no error.
func (h *Hint) list(parts ...string) (dir *os.File, names []string, err error) {
	dir, err = os.Open(h.path(parts...))
	if err == nil {
		names, err = dir.Readdirnames(-1)
	}
	if err == nil {
		return dir, names, nil
	}
	if dir != nil {
		_ = dir.Close()
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		err = nil
	}
	return nil, nil, err
}

// link makes an entry, or fails with fs.ErrExist if the name is taken.
func (h *Hint) link(text string, parts ...string) error {
	name := h.path(parts...)
	err := os.Symlink(text, name)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			return err
		}
		err = os.Symlink(text, name)
	}
	return err
}

// linkOnce is link for an entry that may be there already.
func (h *Hint) linkOnce(text string, parts ...string) error {
	err := h.link(text, parts...)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// remove removes an entry; that it is gone already is no error.
func (h *Hint) remove(parts ...string) error {
	err := os.Remove(h.path(parts...))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	return err
}

// replace makes an entry, or puts it in the place of the one that is there.
func (h *Hint) replace(text string, parts ...string) error {
	return h.rename(func(tmp string) error { return os.Symlink(text, tmp) }, parts...)
}

// swap is replace for an entry that still has the old text, and reports whether it
// had.
func (h *Hint) swap(old, text string, parts ...string) (swapped bool, err error) {
	entry := h.path(parts...)
	tmp := tmpName(entry)
	if err := os.Symlink(text, tmp); err != nil {
		return false, err
	}
	err = h.locked(func() error {
		if now, err := os.Readlink(entry); err != nil || now != old {
			return os.Remove(tmp)
		}
		swapped = true
		return os.Rename(tmp, entry)
	})
	return swapped, err
}

// renames gives every file of this process a name that no other has.
var renames atomic.Int64

const tmpMark = ".tmp"

// tmpName returns a name for what is to be moved to name. It is short, so that it
// fits beside the longest name.
func tmpName(name string) string {
	tmp := filepath.Join(filepath.Dir(name), fmt.Sprintf("%s%d-%d", tmpMark, os.Getpid(), renames.Add(1)))
	_ = os.Remove(tmp) // of a process that died and had this one's number
	return tmp
}

// tidy removes the temporary files of processes that died.
func (h *Hint) tidy() {
	for _, dir := range []string{"claims", "releases", "pools"} {
		d, names, _ := h.list(dir)
		if d != nil {
			_ = d.Close()
		}
		for _, name := range names {
			if (strings.HasPrefix(name, tmpMark) || strings.HasPrefix(name, rebuildingMark)) && !h.younger(settleTime, dir, name) {
				_ = os.Remove(h.path(dir, name))
			}
		}
	}
}

// staleAge is how long something is kept of which nothing is heard.
const staleAge = 30 * 24 * time.Hour

// tidyOthers removes what is known of pools that nobody has asked for in a long time,
// and the hints that no call has written in a long time: what they hold the API server
// knows, and what was to be released the controller has taken back.
func (h *Hint) tidyOthers() {
	dir, names, _ := h.list("pools")
	if dir != nil {
		_ = dir.Close()
	}
	for _, name := range names {
		if !h.younger(staleAge, "pools", name) {
			_ = os.Remove(h.path("pools", name))
		}
	}
	for _, other := range All(h.root, h.log) {
		if other.Same(h) || other.younger(staleAge) || other.younger(staleAge, "claims") || other.younger(staleAge, "releases") {
			continue
		}
		_ = os.RemoveAll(other.dir)
	}
}

// rename makes a file under a temporary name and moves it into place, so that
// nobody sees half of it.
func (h *Hint) rename(create func(tmp string) error, parts ...string) error {
	name := h.path(parts...)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	tmp := tmpName(name)
	if err := create(tmp); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	err := h.locked(func() error { return os.Rename(tmp, name) })
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}

// dropIf removes an entry that still has the text.
func (h *Hint) dropIf(text string, parts ...string) error {
	entry := h.path(parts...)
	err := h.locked(func() error {
		if now, err := os.Readlink(entry); err != nil || now != text {
			return nil
		}
		return os.Remove(entry)
	})
	if errors.Is(err, fs.ErrNotExist) { // there is no hint at all
		return nil
	}
	return err
}

// locked keeps other processes from changing entries while f looks and changes.
// The kernel lifts the lock when the process ends, however it ends.
func (h *Hint) locked(f func() error) error {
	lock, err := os.OpenFile(h.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	return f()
}

// younger reports whether an entry is there and was written less than age ago. A
// clock that was set back does not make an entry young for ever.
func (h *Hint) younger(age time.Duration, parts ...string) bool {
	info, err := os.Lstat(h.path(parts...))
	return err == nil && time.Since(info.ModTime()).Abs() < age
}

// flush makes a directory's entries survive a loss of power if the file system
// can do that; if it cannot, the entries are as good as ever.
func (h *Hint) flush(parts ...string) {
	if dir, err := os.Open(h.path(parts...)); err == nil {
		_ = dir.Sync()
		_ = dir.Close()
	}
}
