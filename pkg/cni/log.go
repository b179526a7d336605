// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"log/slog"
	"os"
	"strings"
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

// openLog opens the plugin's log file for appending; each line is one write, so
// that processes do not mix theirs. A log that cannot be opened is no reason not
// to give a pod its address: then the log is stderr, which the runtime keeps.
func openLog(file, level string) (*slog.Logger, func()) {
	l, ok := levels[strings.ToLower(level)]
	if !ok {
		l = slog.LevelInfo
	}
	out, closeLog := os.Stderr, func() {}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		out, closeLog = f, func() { _ = f.Close() }
	}
	log := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: l})).With("pid", os.Getpid())
	if err != nil {
		log.Warn("log file cannot be opened, logging to stderr", "error", err)
	}
	return log, closeLog
}
