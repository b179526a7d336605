// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crd-ipam/crd-ipam/pkg/hint"
)

func installer(h *Host) *Installer {
	return &Installer{
		Host: h, Log: slog.New(slog.DiscardHandler),
		Around: func(ctx context.Context, install func(context.Context) error) error {
			if _, err := h.Foreign(); err != nil {
				return err
			}
			return install(ctx)
		},
	}
}

// inTime returns the error of f, or one that says that it hangs.
func inTime(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		return fmt.Errorf("it hangs")
	}
}

func setUp(t *testing.T, h *Host) {
	t.Helper()
	if err := inTime(func() error { return installer(h).SetUp(t.Context()) }); err != nil {
		t.Fatal(err)
	}
	if drift, err := h.drift(); err != nil || len(drift) > 0 {
		t.Fatalf("drift %q, %v", drift, err)
	}
}

func removeAll(t *testing.T, h *Host) {
	t.Helper()
	if err := inTime(installer(h).Remove); err != nil {
		t.Fatal(err)
	}
}

// Another installation on the host, with directories of its own, is let alone, also if it has the
// default data directory.
func TestAnotherInstallation(t *testing.T) {
	a := newHost(t)
	setUp(t, a)
	b := newHost(t)
	b.FormerDataDirs = []string{a.DataDir}
	setUp(t, b)
	if drift, err := a.drift(); err != nil || len(drift) > 0 {
		t.Errorf("of the other installation: %q, %v", drift, err)
	}
	removeAll(t, b)
	if drift, err := a.drift(); err != nil || len(drift) > 0 {
		t.Errorf("after the uninstall, of the other installation: %q, %v", drift, err)
	}
	if _, err := os.Stat(recordPath(a.DataDir)); err != nil {
		t.Error(err)
	}
}

// What a former data directory says of the containers on the node is old as soon as another one is
// used, also if the first is used again.
func TestFormerDataDirIsNotBelieved(t *testing.T) {
	h := newHost(t)
	setUp(t, h)
	former := h.DataDir
	known := hint.Open(former, strings.Repeat("0", 16), "ns", slog.New(slog.DiscardHandler))
	r := known.Rebuild(t.Context(), time.Time{})
	r.Enter(time.Now(), nil)
	r.End()
	if !known.Complete() {
		t.Fatal("not complete from the start")
	}
	h.DataDir = filepath.Join(filepath.Dir(former), "other")
	h.Settings.DataDir, h.FormerDataDirs = h.DataDir, []string{former}
	setUp(t, h)
	if known.Complete() {
		t.Error("complete without what is claimed from now on")
	}
}

// The record is in the data directory. An installer that is told another one finds the record all
// the same, by the nv-ipam.conf that is there, or in the default directory, and takes away what is
// no longer wanted.
func TestAnotherDataDir(t *testing.T) {
	for name, tc := range map[string]struct {
		dirs   []string // the first has the record of a run with a token
		noConf bool
	}{
		"named by nv-ipam.conf":                      {dirs: []string{"other", "third"}},
		"named by nv-ipam.conf, and there and back":  {dirs: []string{"other", "third", "other"}},
		"to the default one":                         {dirs: []string{"other", "default"}},
		"from the default one":                       {dirs: []string{"default", "other"}},
		"from the default one, without nv-ipam.conf": {dirs: []string{"default", "other"}, noConf: true},
	} {
		for _, uninstall := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, uninstall %t", name, uninstall), func(t *testing.T) {
				h := newHost(t)
				root := filepath.Dir(h.BinDir)
				if tc.noConf {
					h.Settings = nil
				}
				h.FormerDataDirs = []string{filepath.Join(root, "default")}
				use := func(dir string) {
					h.DataDir = filepath.Join(root, dir)
					if h.Settings != nil {
						h.Settings.DataDir = h.DataDir
					}
				}
				use(tc.dirs[0])
				c := &Credentials{Host: h, Server: "https://x"}
				h.Beside = c.files()
				if err := c.writeKubeconfig(); err != nil {
					t.Fatal(err)
				}
				if err := h.note(c.tokenPath(), ""); err != nil {
					t.Fatal(err)
				}
				write(t, c.tokenPath(), "k", 0o600)
				setUp(t, h)

				h.Beside = nil
				want := []string{"bin/nv-ipam", "etc/nv-ipam.d/nv-ipam.conf", "source"}
				for _, dir := range tc.dirs[1:] {
					use(dir)
					if !uninstall {
						setUp(t, h)
					}
				}
				last := tc.dirs[len(tc.dirs)-1]
				switch {
				case uninstall:
					removeAll(t, h)
					want = []string{"source"}
				case tc.noConf:
					want = []string{"bin/nv-ipam", last + "/installed.json", "source"}
				default:
					want = append(want, last+"/installed.json", last+"/nv-ipam.conf")
				}
				slices.Sort(want)
				if got := files(t, root); !slices.Equal(got, want) {
					t.Errorf("there are %q, want %q", got, want)
				}
				removeAll(t, h)
				if got := files(t, root); !slices.Equal(got, []string{"source"}) {
					t.Errorf("after uninstall there are %q", got)
				}
			})
		}
	}
}

// One directory may have two paths: its record is not one of another directory.
func TestDataDirUnderTwoPaths(t *testing.T) {
	h := newHost(t)
	setUp(t, h)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(h.DataDir, link); err != nil {
		t.Fatal(err)
	}
	h.FormerDataDirs = []string{link}
	setUp(t, h)
	if left, err := h.uninstall(); err != nil || len(left) > 0 {
		t.Errorf("left %q, %v", left, err)
	}
	if got := files(t, filepath.Dir(h.BinDir)); !slices.Equal(got, []string{"source"}) {
		t.Errorf("after uninstall there are %q", got)
	}
}

// damages are what may have become of a file.
var damages = map[string]func(t *testing.T, path string){
	"empty":    func(t *testing.T, path string) { write(t, path, "", 0o600) },
	"torn":     func(t *testing.T, path string) { write(t, path, `{"files":{"/opt/cni`, 0o600) },
	"a list":   func(t *testing.T, path string) { write(t, path, `[]`, 0o600) },
	"null":     func(t *testing.T, path string) { write(t, path, `null`, 0o600) },
	"no files": func(t *testing.T, path string) { write(t, path, `{"files":null,"before":null}`, 0o600) },
	"a pipe":   pipe,
	"a socket": func(t *testing.T, path string) {
		at := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		if err := os.Rename(at, path); err != nil {
			t.Fatal(err)
		}
	},
}

func pipe(t *testing.T, path string) {
	t.Helper()
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
}

// spoil sets the host up, and damages a file there.
func spoil(t *testing.T, h *Host, path string, damage func(t *testing.T, path string)) {
	t.Helper()
	setUp(t, h)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	damage(t, path)
}

// A damaged record does not stop an install, which writes it again. It does not stop an uninstall
// either.
func TestDamagedRecord(t *testing.T) {
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			path := recordPath(h.DataDir)
			spoil(t, h, path, damage)
			removeAll(t, h)
			if _, err := os.Lstat(path); err == nil {
				t.Error("the record is still there")
			}
			spoil(t, h, path, damage)
			setUp(t, h)
			removeAll(t, h)
			if got := files(t, filepath.Dir(h.BinDir)); !slices.Equal(got, []string{"source"}) {
				t.Errorf("after uninstall there are %q", got)
			}
		})
	}
}

// What somebody has made of an installed file is replaced, and stays if it is uninstalled.
func TestDamagedFile(t *testing.T) {
	for name, damage := range damages {
		for _, i := range []int{0, 1, 2} {
			t.Run(fmt.Sprint(name, i), func(t *testing.T) {
				h := newHost(t)
				path := append(h.Confs(), h.Binary())[i]
				spoil(t, h, path, damage)
				setUp(t, h)
				spoil(t, h, path, damage)
				removeAll(t, h)
				if got := files(t, filepath.Dir(h.BinDir)); len(got) != 2 {
					t.Errorf("after uninstall there are %q", got)
				}
			})
		}
	}
}

// A directory in the place of a file is named, with what to do, and keeps nothing else from being
// uninstalled.
func TestDirectoryInPlaceOfAFile(t *testing.T) {
	for i := range 3 {
		h := newHost(t)
		setUp(t, h)
		path := append(h.Confs(), h.Binary())[i]
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(path, "d"), 0o755); err != nil {
			t.Fatal(err)
		}
		err := installer(h).SetUp(t.Context())
		if err == nil || !strings.Contains(err.Error(), path+" is a directory, and a file belongs there: move it away, or delete it") {
			t.Errorf("installing: %v", err)
		}
		removeAll(t, h)
		if got := files(t, filepath.Dir(h.BinDir)); !slices.Equal(got, []string{"source"}) {
			t.Errorf("after uninstall there are %q", got)
		}
		if _, err := os.Stat(filepath.Join(path, "d")); err != nil {
			t.Error(err)
		}
	}
}

// A pipe in the token's place is no token, and nobody waits for its writer.
func TestPipeInPlaceOfTheToken(t *testing.T) {
	c := credentials(t, newIssuer())
	if err := os.MkdirAll(c.Host.ConfDir, 0o755); err != nil {
		t.Fatal(err)
	}
	pipe(t, c.tokenPath())
	if err := inTime(func() error { _, err := c.ensure(t.Context()); return err }); err != nil {
		t.Fatal(err)
	}
	if !c.good(time.Now()) {
		t.Error("there is no token that is good")
	}
}
