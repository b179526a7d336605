// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// maxLog is the size at which the plugin rotates its log.
const maxLog = 100 << 20

// Whatever is wrong with the log, pods start and end, and the result is the
// result.
func TestLogRefusesNoPod(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	for name, logFile := range map[string]func(t *testing.T, dir string) string{
		"relative":             func(*testing.T, string) string { return "relative/log" },
		"parent of nothing":    func(*testing.T, string) string { return "../log" },
		"directory is missing": func(_ *testing.T, dir string) string { return filepath.Join(dir, "none", "log") },
		"a directory":          func(_ *testing.T, dir string) string { return dir },
		"no space left":        func(*testing.T, string) string { return "/dev/full" },
		"standard output":      func(*testing.T, string) string { return "/dev/stdout" },
		"nothing":              func(*testing.T, string) string { return os.DevNull },
		"a link to itself":     func(t *testing.T, dir string) string { return link(t, filepath.Join(dir, "loop")) },
		"a pipe nobody reads":  func(t *testing.T, dir string) string { return fifo(t, filepath.Join(dir, "fifo")) },
		"a pipe that is full":  func(t *testing.T, dir string) string { return fullFifo(t, filepath.Join(dir, "fifo")) },
	} {
		t.Run(name, func(t *testing.T) {
			h := c.host(t, "a")
			ipam := map[string]any{"logFile": logFile(t, h.dir), "logLevel": "verbose"}
			h.mustAdd(t, call{container: "c1", ipam: ipam})
			h.mustRun(t, call{verb: "CHECK", container: "c1", ipam: ipam})
			h.mustRun(t, call{verb: "DEL", container: "c1", ipam: ipam})
			if got := c.held(t); got != "[]" {
				t.Errorf("held %s", got)
			}
		})
	}
}

// An unknown level is no reason either.
func TestLogLevelRefusesNoPod(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	for _, level := range []string{"warn", "INFO", "loud", "7"} {
		t.Run(level, func(t *testing.T) {
			h := c.host(t, "a")
			ipam := map[string]any{"logLevel": level}
			h.mustAdd(t, call{container: "c1", ipam: ipam})
			h.mustRun(t, call{verb: "DEL", container: "c1", ipam: ipam})
			log, err := os.ReadFile(filepath.Join(h.dir, "log"))
			if got, want := strings.Count(string(log), "unknown logLevel"), 2; err != nil || level != "INFO" && got != want {
				t.Errorf("%d warnings of two calls, %v:\n%s", got, err, log)
			}
		})
	}
}

func link(t *testing.T, path string) string {
	t.Helper()
	if err := os.Symlink(path, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func fifo(t *testing.T, path string) string {
	t.Helper()
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// fullFifo makes a pipe that has a reader who does not read.
func fullFifo(t *testing.T, path string) string {
	t.Helper()
	fd, err := unix.Open(fifo(t, path), unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	for err == nil {
		_, err = unix.Write(fd, make([]byte, 4096))
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	return path
}

// Sixty processes find the log too large at once: one rotates it, and no line is
// lost or torn.
func TestLogIsRotated(t *testing.T) {
	c := newCluster(t)
	h := c.host(t, "a")
	file := filepath.Join(h.dir, "log")
	fillLog(t, file)
	const calls = 60
	var all sync.WaitGroup
	for n := range calls {
		all.Go(func() {
			h.wantError(t, call{verb: "ADD", container: fmt.Sprintf("c%d", n), ipam: map[string]any{"poolType": "vlan"}}, 7, "vlan")
		})
	}
	all.Wait()
	lines := append(tail(t, file+".1", maxLog), tail(t, file, 0)...)
	failed := 0
	for _, line := range lines {
		if !strings.HasPrefix(line, "time=") {
			t.Errorf("torn line %q", line)
		}
		if strings.Contains(line, "msg=failed") {
			failed++
		}
	}
	if failed != calls {
		t.Errorf("%d lines of %d calls", failed, calls)
	}
	if logs := glob(t, file); len(logs) != 2 {
		t.Errorf("logs are %q", logs)
	}

	// The next time the file before it makes room.
	fillLog(t, file)
	h.wantError(t, call{verb: "ADD", container: "c", ipam: map[string]any{"poolType": "vlan"}}, 7, "vlan")
	if logs := glob(t, file); len(logs) != 2 || size(t, file) >= maxLog {
		t.Errorf("logs are %q, of %d bytes", logs, size(t, file))
	}
}

// A log that cannot be renamed does not grow either; nor does the file that a link
// leads to.
func TestLogIsBoundedWhereItCannotBeRotated(t *testing.T) {
	c := newCluster(t)
	vlan := map[string]any{"poolType": "vlan"}
	t.Run("it cannot be renamed", func(t *testing.T) {
		h := c.host(t, "a")
		file := filepath.Join(h.dir, "log")
		fillLog(t, file)
		if err := os.MkdirAll(filepath.Join(file+".1", "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		h.wantError(t, call{verb: "ADD", container: "c", ipam: vlan}, 7, "vlan")
		if got := size(t, file); got == 0 || got >= maxLog {
			t.Errorf("it has %d bytes", got)
		}
	})
	t.Run("it is a link", func(t *testing.T) {
		h := c.host(t, "a")
		file, target := filepath.Join(h.dir, "log"), filepath.Join(t.TempDir(), "elsewhere")
		if err := os.Symlink(target, file); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			fillLog(t, target)
			h.wantError(t, call{verb: "ADD", container: "c", ipam: vlan}, 7, "vlan")
		}
		if got := size(t, target); got == 0 || got >= maxLog || len(glob(t, target)) != 2 || len(glob(t, file)) != 1 {
			t.Errorf("%d bytes in %q and %q", got, glob(t, target), glob(t, file))
		}
	})
}

// fillLog makes a file as large as the log may become, without needing the space.
func fillLog(t *testing.T, file string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = errors.Join(f.Truncate(maxLog), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// tail returns the lines of a file from an offset on.
func tail(t *testing.T, file string, from int64) []string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if len(data) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

func size(t *testing.T, file string) int64 {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func glob(t *testing.T, file string) []string {
	t.Helper()
	found, err := filepath.Glob(file + "*")
	if err != nil {
		t.Fatal(err)
	}
	return found
}
