// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// list opens a directory of the hint and reads its names. The caller closes it. If it
// does not exist or is not a directory, there are no entries: dir is nil, without an
// error.
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

// link makes an entry. The error is fs.ErrExist if the name is taken.
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

// linkOnce is like link, but succeeds if the name is taken.
func (h *Hint) linkOnce(text string, parts ...string) error {
	err := h.link(text, parts...)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// remove removes an entry. It succeeds if there is none.
func (h *Hint) remove(parts ...string) error {
	err := os.Remove(h.path(parts...))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	return err
}

// replace makes an entry, or replaces the existing one.
func (h *Hint) replace(text string, parts ...string) error {
	return h.rename(func(tmp string) error { return os.Symlink(text, tmp) }, parts...)
}

// swap replaces an entry if it still has the old claim, and reports whether it had.
func (h *Hint) swap(old, text string, parts ...string) (swapped bool, err error) {
	entry := h.path(parts...)
	tmp := tmpName(entry)
	if err := os.Symlink(text, tmp); err != nil {
		return false, err
	}
	err = h.locked(func() error {
		if now, err := os.Readlink(entry); err != nil || claimOf(now) != claimOf(old) {
			return os.Remove(tmp)
		}
		swapped = true
		return os.Rename(tmp, entry)
	})
	return swapped, err
}

// renames makes the names of this process's temporary files unique.
var renames atomic.Int64

const tmpMark = ".tmp"

// tmpName returns a name for a temporary file that is to be moved to name. It is in the
// same directory, and short even if name is as long as a file name may be.
func tmpName(name string) string {
	tmp := filepath.Join(filepath.Dir(name), fmt.Sprintf("%s%d-%d", tmpMark, os.Getpid(), renames.Add(1)))
	_ = os.Remove(tmp) // left by a dead process with the same process ID
	return tmp
}

// tidy removes the temporary files of dead processes.
func (h *Hint) tidy() {
	for _, dir := range []string{"claims", "releases", "pools"} {
		d, names, _ := h.list(dir)
		if d != nil {
			_ = d.Close()
		}
		for _, name := range names {
			if (strings.HasPrefix(name, tmpMark) || strings.HasPrefix(name, rebuildingMark)) && !h.youngerThan(InFlight, dir, name) {
				_ = os.Remove(h.path(dir, name))
			}
		}
	}
}

// staleAge is how long unused files and hints are kept.
const staleAge = 30 * 24 * time.Hour

// tidyOthers removes the files of pools, and the hints, that were not written for
// staleAge. Nothing is lost: the API server knows what those hints hold, and the
// controller has reclaimed what was to be released.
func (h *Hint) tidyOthers() {
	dir, names, _ := h.list("pools")
	if dir != nil {
		_ = dir.Close()
	}
	for _, name := range names {
		if !h.youngerThan(staleAge, "pools", name) && !h.isEpochInUse(name) {
			_ = os.Remove(h.path("pools", name))
		}
	}
	for _, other := range All(h.root, h.log) {
		if other.Same(h) || other.youngerThan(staleAge) || other.youngerThan(staleAge, "claims") || other.youngerThan(staleAge, "releases") {
			continue
		}
		other.removeAll()
	}
}

// removeAll removes the hint. What else is in its directories stays, and they with it: it may be
// somebody else's directory after all.
func (h *Hint) removeAll() {
	removeDir(h.path("claims"), isEntry)
	removeDir(h.path("releases"), isEntry)
	removeDir(h.path("pools"), isPoolFile)
	removeDir(h.dir, func(path string) bool {
		name := filepath.Base(path)
		return (slices.Contains([]string{"lost", "lock", "rebuild"}, name) || strings.HasPrefix(name, tmpMark)) && !isDir(path)
	})
}

// removeDir removes what ours says from a directory, and then that, if it is empty.
func removeDir(dir string, ours func(path string) bool) {
	clearDir(dir, ours)
	if isDir(dir) {
		_ = os.Remove(dir)
	}
}

// clearDir removes what ours says from a directory, and then that, if it is empty and had something
// of ours, which it reports. It does nothing if it is not a directory.
func clearDir(dir string, ours func(path string) bool) (found bool) {
	if !isDir(dir) {
		return false
	}
	files, _ := filepath.Glob(filepath.Join(escape(dir), "*"))
	for _, path := range files {
		if ours(path) {
			found = true
			_ = os.Remove(path)
		}
	}
	if found {
		_ = os.Remove(dir)
	}
	return found
}

func isDir(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.IsDir()
}

// isEntry reports whether a file is a symbolic link that leads nowhere, as all entries do.
func isEntry(path string) bool {
	if _, err := os.Readlink(path); err != nil {
		return false
	}
	_, err := os.Stat(path)
	return err != nil
}

// isPoolFile reports whether a file in pools/ has a name that the hint gives.
func isPoolFile(path string) bool {
	name := filepath.Base(path)
	kind, _, _ := strings.Cut(name, ".")
	_, err := pool.ParseType(kind)
	return (err == nil || strings.HasPrefix(name, "@") || strings.HasPrefix(name, tmpMark)) && !isDir(path)
}

// rename creates a file under a temporary name and moves it into place, so that nobody
// reads half of it.
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

// saveJSON writes v to a file.
func (h *Hint) saveJSON(v any, parts ...string) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return h.rename(func(tmp string) error { return os.WriteFile(tmp, data, 0o600) }, parts...)
}

// readJSON reads a file into v, and reports whether that is possible.
func (h *Hint) readJSON(v any, parts ...string) bool {
	data, err := os.ReadFile(h.path(parts...))
	return err == nil && json.Unmarshal(data, v) == nil
}

// dropIf removes an entry if it still has the text.
func (h *Hint) dropIf(text string, parts ...string) error {
	entry := h.path(parts...)
	err := h.locked(func() error {
		if now, err := os.Readlink(entry); err != nil || claimOf(now) != claimOf(text) {
			return nil
		}
		return os.Remove(entry)
	})
	if errors.Is(err, fs.ErrNotExist) { // the hint's directory does not exist
		return nil
	}
	return err
}

// lockFile opens a file that is only locked. If it was removed since, two calls have the
// lock, and do twice what they need not.
func (h *Hint) lockFile(parts ...string) (*os.File, error) {
	name := h.path(parts...)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return nil, err
	}
	return os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
}

// waitForLock tries at each interval to get the lock, and reports whether it has it before
// ctx ended.
func waitForLock(ctx context.Context, lock *os.File, interval time.Duration) bool {
	for syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(interval):
		}
	}
	return true
}

// locked calls f with the lock on the hint, so that f can read an entry and then change
// it. The kernel removes the lock when the process ends, however it ends.
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

// youngerThan reports whether an entry exists and was written less than age ago. An entry
// from the future is old if it is more than age away: the clock was set back.
func (h *Hint) youngerThan(age time.Duration, parts ...string) bool {
	info, err := os.Lstat(h.path(parts...))
	return err == nil && time.Since(info.ModTime()).Abs() < age
}

// flush writes a directory's entries to the disk, so that they survive a power failure.
// It does not matter if the file system cannot do that.
func (h *Hint) flush(parts ...string) {
	if dir, err := os.Open(h.path(parts...)); err == nil {
		_ = dir.Sync()
		_ = dir.Close()
	}
}
