// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// script runs one of hack's scripts with more in its environment.
func script(t *testing.T, name string, environment []string, args ...string) (output string, err error) {
	t.Helper()
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(root, "hack", name), args...)
	cmd.Env = append(os.Environ(), environment...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// day is a date so many days from now.
func day(n int) string { return time.Now().UTC().AddDate(0, 0, n).Format(time.DateOnly) }

// A waiver names who, why and until when, and is no waiver when it does not, or when
// its time is over.
func TestWaiver(t *testing.T) {
	waiver := func(since, until string) string {
		return fmt.Sprintf("# a comment\nby: Jane Doe\nsince: %s\nuntil: %s\nreason: no way out\n", since, until)
	}
	good := waiver(day(-1), day(89))
	for _, tc := range []struct{ name, text, refusal string }{
		{"good", good, ""},
		{"its last day", waiver(day(-90), day(0)), ""},
		{"its first day", waiver(day(0), day(0)), ""},
		{"over since yesterday", waiver(day(-80), day(-1)), "EXPIRED on " + day(-1)},
		{"for too long", waiver(day(-1), day(90)), "91 days, more than 90"},
		{"not yet", waiver(day(1), day(9)), "not yet"},
		{"backwards", waiver(day(-1), day(-2)), "ends before it begins"},
		{"no such date", waiver(day(-1), "2027-02-30"), "is not a date"},
		{"another format", waiver(day(-1), "23 Feb 2027"), "is not a date YYYY-MM-DD"},
		{"a word", waiver(day(-1), "tomorrow"), "is not a date YYYY-MM-DD"},
		{"nobody", strings.Replace(good, "by: Jane Doe\n", "", 1), `no line "by:"`},
		{"an empty name", strings.Replace(good, "Jane Doe", "  ", 1), `no line "by:"`},
		{"no reason", strings.Replace(good, "reason: no way out\n", "", 1), `no line "reason:"`},
		{"no end", strings.Replace(good, "until:", "till:", 1), `no line "until:"`},
		{"two ends", good + "until: " + day(3) + "\n", `more than one line "until:"`},
		{"empty", "", "no line"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, err := script(t, "waiver.sh", nil, write(t, "waiver", tc.text))
			if tc.refusal != "" {
				if err == nil || !strings.Contains(out, tc.refusal) {
					t.Errorf("%v, want %q:\n%s", err, tc.refusal, out)
				}
				return
			}
			if err != nil || !strings.Contains(out, "WAIVED until") || !strings.Contains(out, "Jane Doe") || !strings.Contains(out, "no way out") {
				t.Errorf("%v:\n%s", err, out)
			}
		})
	}
	if out, err := script(t, "waiver.sh", nil, filepath.Join(t.TempDir(), "none")); err == nil {
		t.Errorf("none: %s", out)
	}
}

// What could not be checked fails, unless it was an unreachable database and that is
// waived. What was found is never waived.
func TestVulncheckFailsWhereNothingIsChecked(t *testing.T) {
	good := write(t, "good", fmt.Sprintf("by: x\nsince: %s\nuntil: %s\nreason: y\n", day(0), day(1)))
	over := write(t, "over", fmt.Sprintf("by: x\nsince: %s\nuntil: %s\nreason: y\n", day(-2), day(-1)))
	none := filepath.Join(t.TempDir(), "none")
	const unreachable = "echo 'govulncheck: fetching vulnerabilities: dial tcp: no route to host' >&2; exit 1"
	for _, tc := range []struct {
		name, program, waiver string
		passes                bool
	}{
		{"nothing found", "echo 'No vulnerabilities found.'", none, true},
		{"vulnerabilities", "echo 'Vulnerability #1'; exit 3", good, false},
		{"unreachable", unreachable, none, false},
		{"unreachable, and waived", unreachable, good, true},
		{"unreachable, and the waiver is over", unreachable, over, false},
		{"does not build", "echo 'govulncheck: loading packages: errors' >&2; exit 1", good, false},
		{"is killed", "kill -9 $$", good, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			program := write(t, "govulncheck", "#!/bin/sh\n"+tc.program+"\n")
			out, err := script(t, "vulncheck.sh", []string{"GOVULNCHECK=" + program, "VULNCHECK_WAIVER=" + tc.waiver}, "")
			if (err == nil) != tc.passes {
				t.Errorf("%v:\n%s", err, out)
			}
			if strings.HasPrefix(tc.name, "unreachable") && !strings.Contains(out, "NOT CHECKED") {
				t.Errorf("does not say that nothing was checked:\n%s", out)
			}
		})
	}
}
