// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// levels are nv-ipam's log levels as levels of slog.
var levels = map[string]slog.Level{
	"verbose": slog.LevelDebug - 4,
	"debug":   slog.LevelDebug,
	"info":    slog.LevelInfo,
	"warning": slog.LevelWarn,
	"error":   slog.LevelError,
	"panic":   slog.LevelError + 4,
}

// similarLevels are common names from other programs for nv-ipam's levels.
var similarLevels = map[string]string{
	"trace": "verbose", "warn": "warning", "err": "error", "fatal": "panic", "critical": "panic",
}

// maxLog is the size in bytes at which the log is rotated, as in nv-ipam. The last file is
// kept as FILE.1, so that both need about twice as much.
const maxLog = 100 << 20

// openLog opens the plugin's log. It never fails: a pod does not wait for its address
// because of the log. If a setting is wrong, it uses another value and logs that. If the
// file cannot be used it logs to stderr, which the runtime reports when a call fails.
func openLog(file, level string) (log *slog.Logger, closeLog func()) {
	var threshold slog.LevelVar // info, until it is set below
	out := &logFile{fd: -1}
	log = slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: &threshold})).With("pid", os.Getpid())

	path := file
	if !filepath.IsAbs(path) {
		path = defaultLogFile
	}
	err := out.open(path)
	if file != path && file != "" {
		log.Warn("logFile is not an absolute path", "logFile", file, "using", path)
	}
	if err != nil {
		log.Warn("log file cannot be used, logging to stderr", "error", err)
	}
	l, known := parseLevel(level)
	if !known {
		log.Warn("unknown logLevel; known are verbose, debug, info, warning, error, panic", "logLevel", level, "using", l)
	}
	threshold.Set(l)
	return log, out.close
}

// parseLevel returns the level that a text means, or info if it means none. known is true
// if the text is one of nv-ipam's names.
func parseLevel(text string) (level slog.Level, known bool) {
	name := strings.ToLower(strings.TrimSpace(text))
	if name == "" {
		name = defaultLogLevel
	}
	if level, known = levels[name]; known {
		return level, true
	}
	if similar, ok := similarLevels[name]; ok {
		return levels[similar], false
	}
	return slog.LevelInfo, false
}

// logFile is what the log is written to. Each line is one write to the end of the file,
// so that the lines of several processes do not mix.
type logFile struct {
	mu sync.Mutex // a call that has timed out may still be writing
	fd int        // -1 for stderr
}

// open opens the file, and rotates it if it is too large. It does not wait for the reader
// of a pipe.
func (f *logFile) open(path string) error {
	fd, info, err := openAppending(path)
	if err != nil {
		return err
	}
	if info.Mode&unix.S_IFMT == unix.S_IFREG && info.Size >= maxLog {
		rotate(path, fd, &info)
		if next, _, err := openAppending(path); err == nil {
			_ = unix.Close(fd)
			fd = next
		}
	}
	f.fd = fd
	return nil
}

func openAppending(path string) (fd int, info unix.Stat_t, err error) {
	// Close-on-exec: a credential program must not inherit the file.
	fd, err = unix.Open(path, unix.O_APPEND|unix.O_CREAT|unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err == nil {
		err = unix.Fstat(fd, &info)
	}
	var stdout unix.Stat_t
	if err == nil && unix.Fstat(unix.Stdout, &stdout) == nil && stdout.Dev == info.Dev && stdout.Ino == info.Ino && info.Mode&unix.S_IFMT != unix.S_IFCHR {
		err = unix.EBUSY // it is stdout, where the runtime reads the result
	}
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return -1, info, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, info, nil
}

// rotate renames a log that is too large. If several processes try, the one does it that
// gets the lock of this file and still finds the file under its name. The others do not
// wait: they write to the renamed file. A log that cannot be renamed, because it is a
// mount point, is emptied.
func rotate(path string, fd int, info *unix.Stat_t) {
	if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) != nil {
		return
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	var now unix.Stat_t
	if unix.Stat(path, &now) != nil || now.Dev != info.Dev || now.Ino != info.Ino || now.Size < maxLog {
		return // another process has done it
	}
	if unix.Rename(path, path+".1") != nil {
		_ = unix.Ftruncate(fd, 0)
	}
}

// Write writes a line. If that fails (the disk is full, the reader of a pipe is slow) it
// writes it to stderr, or drops it: it never waits.
func (f *logFile) Write(line []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd >= 0 {
		if _, err := unix.Write(f.fd, line); err == nil {
			return len(line), nil
		}
	}
	// Not os.Stderr: if stderr is a closed pipe, writing to that ends the process.
	_, _ = unix.Write(unix.Stderr, line)
	return len(line), nil
}

func (f *logFile) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd >= 0 {
		_ = unix.Close(f.fd)
		f.fd = -1
	}
}
