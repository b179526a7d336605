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

// levels are nv-ipam's, on slog's scale.
var levels = map[string]slog.Level{
	"verbose": slog.LevelDebug - 4,
	"debug":   slog.LevelDebug,
	"info":    slog.LevelInfo,
	"warning": slog.LevelWarn,
	"error":   slog.LevelError,
	"panic":   slog.LevelError + 4,
}

// similarLevels are what people write in place of them.
var similarLevels = map[string]string{
	"trace": "verbose", "warn": "warning", "err": "error", "fatal": "panic", "critical": "panic",
}

// maxLog is the size in bytes at which the log is rotated: nv-ipam's. The file
// before it is kept under the name FILE.1, so that both need about twice as much.
const maxLog = 100 << 20

// openLog opens the plugin's log. Nothing that is wrong with it keeps a pod from
// its address: what cannot be done as configured is done in another way, and the
// log says so. A file that cannot be used is replaced by stderr, which the runtime
// keeps when a call fails.
func openLog(file, level string) (log *slog.Logger, closeLog func()) {
	var threshold slog.LevelVar // info, until it is set: so much is always said
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

// parseLevel returns the level that a text means, or info, and whether the text is
// one of nv-ipam's names.
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

// logFile is where the log goes. Each line is one write to the end of the file, so
// that processes do not mix theirs.
type logFile struct {
	mu sync.Mutex // a call that has run out of time may still be writing
	fd int        // -1 for stderr
}

// open opens the file, without waiting for anybody: a pipe may have no reader. A
// log that has become too large is rotated.
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
	// Close-on-exec: credential programs have no business with it.
	fd, err = unix.Open(path, unix.O_APPEND|unix.O_CREAT|unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err == nil {
		err = unix.Fstat(fd, &info)
	}
	var stdout unix.Stat_t
	if err == nil && unix.Fstat(unix.Stdout, &stdout) == nil && stdout.Dev == info.Dev && stdout.Ino == info.Ino && info.Mode&unix.S_IFMT != unix.S_IFCHR {
		err = unix.EBUSY // the runtime reads the result there
	}
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return -1, info, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, info, nil
}

// rotate renames a log that is too large. Of any number of processes that find it
// so, one does it: who has the lock of this very file, and still finds it under its
// name. The others need not wait: what they write now goes to the renamed file. A
// log that cannot be renamed, because it is a mount of its own, is emptied.
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

// Write writes a line. A line that cannot be written (the disk is full, the reader
// of a pipe is slow) goes to stderr, or is lost: nobody waits for the log.
func (f *logFile) Write(line []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd >= 0 {
		if _, err := unix.Write(f.fd, line); err == nil {
			return len(line), nil
		}
	}
	// Not os.Stderr: with nobody reading, that would end the process.
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
