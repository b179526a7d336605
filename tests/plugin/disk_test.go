// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mountData puts a file system of its own under the node's data.
func (h *host) mountData(t *testing.T, options string) {
	t.Helper()
	dir := h.data()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatalf("tests that mount file systems need root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func (h *host) data() string {
	if h.root != "" {
		return filepath.Join(h.root, "var/lib/cni/nv-ipam")
	}
	return filepath.Join(h.dir, "data")
}

// hint is a file of the hint: what this node believes about the one namespace and
// site that its calls use.
func (h *host) hint(name ...string) string {
	return filepath.Join(append([]string{h.data(), h.ns + "@" + siteID(h.name)}, name...)...)
}

// remount makes the data read-only or writable.
func (h *host) remount(t *testing.T, flags uintptr) {
	t.Helper()
	if err := unix.Mount("", h.data(), "", unix.MS_REMOUNT|flags, ""); err != nil {
		t.Fatal(err)
	}
}

// warnings returns how often each call's log says that the hint is not usable, and
// forgets the log.
func (h *host) warnings(t *testing.T) map[string]int {
	t.Helper()
	path := filepath.Join(h.dir, "log")
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	_ = os.Remove(path)
	out := map[string]int{}
	for line := range strings.Lines(string(data)) {
		_, rest, _ := strings.Cut(line, "pid=")
		pid, _, _ := strings.Cut(rest, " ")
		if strings.Contains(line, "hint is not usable") {
			out[pid]++
		}
	}
	return out
}

// everyVerb runs a pod's life beside another pod's, which has c0. Whatever the disk
// is like, every call works.
func (h *host) everyVerb(t *testing.T, c *cluster) {
	t.Helper()
	before := c.held(t)
	h.mustAdd(t, call{container: "dynamic"})
	h.mustAdd(t, call{container: "dynamic"}) // without a hint that may be another one
	h.mustAdd(t, call{container: "static", args: "IP=10.0.0.77"})
	h.mustRun(t, call{verb: "CHECK", container: "dynamic"})
	h.mustRun(t, call{verb: "CHECK", container: "c0"})
	h.mustRun(t, call{verb: "STATUS"})
	h.mustRun(t, call{verb: "DEL", container: "static"})
	h.mustRun(t, call{verb: "DEL", container: "dynamic"})
	if after := c.held(t); after != before {
		t.Errorf("held %s, want %s", after, before)
	}
}

// disks are what can be wrong with the node's data, and how it is mended.
var disks = []struct {
	name    string
	options string // of the file system
	spoil   func(t *testing.T, h *host)
	mend    func(t *testing.T, h *host)
	usable  bool // no call has a reason to complain
}{
	{name: "no inodes left", options: "nr_inodes=24", spoil: fill, mend: unfill},
	// An entry takes an inode and no block: only what is longer has no room.
	{name: "no space left", options: "size=64k,nr_inodes=10k", spoil: fill, mend: unfill, usable: true},
	{name: "read-only", options: "size=1m",
		spoil: func(t *testing.T, h *host) { h.remount(t, unix.MS_RDONLY) },
		mend:  func(t *testing.T, h *host) { h.remount(t, 0) }},
	{name: "a file where the directory should be",
		spoil: func(t *testing.T, h *host) { replace(t, h.data()) },
		mend:  func(t *testing.T, h *host) { remove(t, h.data()) }},
	{name: "a file where the claims should be",
		spoil: func(t *testing.T, h *host) { replace(t, h.hint("claims")) },
		mend:  func(t *testing.T, h *host) { remove(t, h.hint("claims")) }},
	{name: "a file where the hint should be",
		spoil: func(t *testing.T, h *host) { replace(t, h.hint()) },
		mend:  func(t *testing.T, h *host) { remove(t, h.hint()) }},
	{name: "a file where the releases should be",
		spoil: func(t *testing.T, h *host) { replace(t, h.hint("releases")) },
		mend:  func(t *testing.T, h *host) { remove(t, h.hint("releases")) }},
	{name: "a directory where the lock should be",
		spoil: func(t *testing.T, h *host) {
			remove(t, h.hint("lock"))
			if err := os.Mkdir(h.hint("lock"), 0o700); err != nil {
				t.Fatal(err)
			}
		},
		mend: func(t *testing.T, h *host) { remove(t, h.hint("lock")) }},
	{name: "torn views", usable: true, mend: func(*testing.T, *host) {},
		spoil: func(t *testing.T, h *host) {
			for _, name := range []string{"ippool.p.json", "ippool.p.last"} {
				path := h.hint("pools", name)
				remove(t, path)
				if err := os.WriteFile(path, []byte(`{"version":"`), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}},
	{name: "deleted", usable: true, mend: func(*testing.T, *host) {},
		spoil: func(t *testing.T, h *host) { remove(t, h.data()) }},
	{name: "its claims deleted, and nothing else", usable: true, mend: func(*testing.T, *host) {},
		spoil: func(t *testing.T, h *host) { remove(t, h.hint("claims")) }},
	{name: "somebody else's, and nobody's to write", usable: true, mend: func(*testing.T, *host) {},
		spoil: func(t *testing.T, h *host) { // root may write nevertheless
			if err := filepath.WalkDir(h.data(), func(path string, _ fs.DirEntry, err error) error {
				return errors.Join(err, os.Lchown(path, 12345, 12345))
			}); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(h.data(), 0o500); err != nil {
				t.Fatal(err)
			}
		}},
	{name: "clock set back by a day", usable: true, mend: func(*testing.T, *host) {},
		spoil: func(t *testing.T, h *host) { shift(t, h.data(), 24*time.Hour) }},
	{name: "clock set forward by a day", usable: true, mend: func(*testing.T, *host) {},
		spoil: func(t *testing.T, h *host) { shift(t, h.data(), -24*time.Hour) }},
}

// fill makes files until there is room for no more.
func fill(t *testing.T, h *host) {
	t.Helper()
	for i := range 10000 {
		name := filepath.Join(h.data(), fmt.Sprint("filler", i))
		if err := os.WriteFile(name, make([]byte, 4096), 0o600); errors.Is(err, unix.ENOSPC) {
			// A symbolic link to a short text takes no block of its own: without
			// room for an inode there is none either.
			for j := range 10000 {
				if err := os.Symlink(strings.Repeat("x", 200), fmt.Sprint(name, "-", j)); errors.Is(err, unix.ENOSPC) {
					return
				}
			}
		}
	}
	t.Fatal("the disk does not get full")
}

func unfill(t *testing.T, h *host) {
	t.Helper()
	fillers, err := filepath.Glob(filepath.Join(h.data(), "filler*"))
	if err != nil || len(fillers) == 0 {
		t.Fatal(err, fillers)
	}
	for _, f := range fillers {
		remove(t, f)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func replace(t *testing.T, path string) {
	t.Helper()
	remove(t, path)
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// shift moves the times of all that is in a directory.
func shift(t *testing.T, dir string, by time.Duration) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		tv := unix.NsecToTimeval(time.Now().Add(by).UnixNano())
		return errors.Join(err, unix.Lutimes(path, []unix.Timeval{tv, tv}))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// With a disk that is full, read-only, torn or gone every verb works, and says so
// once in each call. Nothing is given twice and nothing leaks, then and afterwards.
func TestFaultsOfTheDisk(t *testing.T) {
	for _, d := range disks {
		t.Run(d.name, func(t *testing.T) {
			c := newCluster(t)
			c.blocks(t, "a")
			h := c.host(t, "a")
			if d.options != "" {
				h.mountData(t, d.options)
			}
			h.mustAdd(t, call{container: "c0"})
			h.warnings(t)
			d.spoil(t, h)
			h.everyVerb(t, c)
			warnings := h.warnings(t)
			if (len(warnings) == 0) != d.usable {
				t.Errorf("%d calls said that the hint is not usable", len(warnings))
			}
			for pid, n := range warnings {
				if n > 1 {
					t.Errorf("process %s said it %d times", pid, n)
				}
			}
			d.mend(t, h)
			h.mustRun(t, call{verb: "DEL", container: "never-added"})
			h.warnings(t)
			h.everyVerb(t, c)
			if n := len(h.warnings(t)); n > 0 {
				t.Errorf("%d calls complain although all is well again", n)
			}
			h.mustRun(t, call{verb: "DEL", container: "c0"})
			if got := c.held(t); got != "[]" {
				t.Errorf("held %s", got)
			}
		})
	}
}

// A hundred processes at once, while the data is deleted under them and their disk
// gets full and empty: an address has one owner, and after the DELs all are free.
func TestHundredProcessesAndABadDisk(t *testing.T) {
	for name, disturb := range map[string]func(t *testing.T, h *host){
		"deleted under way": func(t *testing.T, h *host) {
			entries, err := os.ReadDir(h.data())
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
			for _, e := range entries {
				_ = os.RemoveAll(filepath.Join(h.data(), e.Name())) // somebody may make an entry in it meanwhile
			}
		},
		"full now and then": func(t *testing.T, h *host) {
			var now unix.Statfs_t
			if err := unix.Statfs(h.data(), &now); err != nil {
				t.Error(err)
			}
			for _, inodes := range []uint64{now.Files - now.Ffree, 100_000} {
				err := unix.Mount("", h.data(), "", unix.MS_REMOUNT, fmt.Sprint("nr_inodes=", inodes))
				if err != nil && !errors.Is(err, unix.EINVAL) { // more have been taken meanwhile
					t.Error(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			c.blocks(t, "a") // 99 addresses
			h := c.host(t, "a")
			h.mountData(t, "size=8m")
			h.mustAdd(t, call{container: "c0"})
			stop := make(chan struct{})
			var disturber sync.WaitGroup
			disturber.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(5 * time.Millisecond): // else it takes the CPU from those it disturbs
						disturb(t, h)
					}
				}
			})
			owners, errs := together(t, 98, []*host{h}, func(int) call { return call{} })
			close(stop)
			disturber.Wait()
			for _, err := range errs { // c0 is running already: its ADD changes nothing
				t.Errorf("a free address was not found: %v", err)
			}
			if len(owners) == 0 {
				t.Fatal("nobody got an address")
			}
			for i := range 98 {
				h.mustRun(t, call{verb: "DEL", container: fmt.Sprint("c", i)})
			}
			c.age(t)
			h.mustRun(t, gc())
			if got := c.held(t); got != "[]" {
				t.Errorf("held %s", got)
			}
		})
	}
}

// settle makes all that is noted older than any call can be.
func (h *host) settle(t *testing.T) {
	t.Helper()
	ago := time.Now().Add(-time.Hour)
	notes, err := filepath.Glob(filepath.Join(h.data(), "*@*", "releases", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, note := range notes {
		text, err := os.Readlink(note)
		if err != nil {
			t.Fatal(err)
		}
		remove(t, note)
		if err := os.Symlink(since.ReplaceAllString(text, fmt.Sprint("${1}", ago.Unix(), "${2}")), note); err != nil {
			t.Fatal(err)
		}
	}
	shift(t, h.data(), -time.Hour)
}

// since is the time in the note of a release: at its begin or at its end.
var since = regexp.MustCompile(`(^|/)[0-9]+(;|$)`)
