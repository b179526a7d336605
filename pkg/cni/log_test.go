// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every level of nv-ipam is known in any case. Any other text is a warning in the
// log, whatever the level, and the level that it most likely means.
func TestLogLevels(t *testing.T) {
	for _, tc := range []struct {
		level string
		want  slog.Level
		warns bool
	}{
		{level: "verbose", want: -8}, {level: "debug", want: -4}, {level: "info", want: 0}, {level: "warning", want: 4}, {level: "error", want: 8}, {level: "panic", want: 12},
		{level: "INFO", want: 0}, {level: "Warning", want: 4}, {level: " debug\n", want: -4}, {level: "", want: 0},
		{level: "warn", want: 4, warns: true}, {level: "WARN", want: 4, warns: true}, {level: "err", want: 8, warns: true}, {level: "fatal", want: 12, warns: true},
		{level: "trace", want: -8, warns: true}, {level: "loud", want: 0, warns: true}, {level: "4", want: 0, warns: true},
	} {
		t.Run(tc.level, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "log")
			log, closeLog := openLog(file, tc.level)
			for l := slog.Level(-8); l <= 12; l += 4 {
				log.Log(t.Context(), l, "line")
			}
			closeLog()
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := strings.Count(string(data), "msg=line"), int(12-tc.want)/4+1; got != want {
				t.Errorf("%d lines, want %d:\n%s", got, want, data)
			}
			if got := strings.Count(string(data), "unknown logLevel"); got != map[bool]int{true: 1}[tc.warns] {
				t.Errorf("%d warnings:\n%s", got, data)
			}
			if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("log has mode %v, %v; it names pods", info.Mode(), err)
			}
		})
	}
}
