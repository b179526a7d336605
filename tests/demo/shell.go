// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func (d *demo) heading(text string) {
	if d.terminal {
		text = "\x1b[1m" + text + "\x1b[0m"
	}
	fmt.Printf("\n%s\n", text)
}

// say prints a remark.
func say(format string, args ...any) { fmt.Printf("# "+format+"\n", args...) }

// shell shows a command line as a user would type it, runs exactly that, and
// shows and returns what it printed.
func (c *cluster) shell(ctx context.Context, line string) (string, error) {
	fmt.Println("$ " + line)
	out, err := c.quietly(ctx, line)
	fmt.Print(out)
	return out, err
}

// quietly runs a command line without showing it.
func (c *cluster) quietly(ctx context.Context, line string) (string, error) {
	cmd := exec.CommandContext(ctx, "sh", "-c", "exec "+line)
	cmd.Dir = c.root
	cmd.Env = append(os.Environ(),
		"PATH="+os.Getenv("KUBEBUILDER_ASSETS")+":"+os.Getenv("PATH"),
		"KUBECONFIG="+c.env.Kubeconfig,
		"HOME="+c.env.Dir) // for kubectl's cache
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", line, err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// mismatch is a check that failed.
func mismatch(what string, expected, seen any) error {
	return fmt.Errorf("%s\n  expected: %v\n  seen:     %v", what, expected, seen)
}

// checkRows compares a table, without its header, as words: columns are as wide
// as what is in them. A row may go on after what is expected of it: ages and
// versions depend on the machine.
func checkRows(what, table string, want []string) error {
	var rows []string
	for line := range strings.Lines(table) {
		if words := strings.Fields(line); len(words) > 0 && words[0] != "NAME" {
			rows = append(rows, strings.Join(words, " "))
		}
	}
	ok := len(rows) == len(want)
	for i := 0; ok && i < len(rows); i++ {
		ok = strings.HasPrefix(rows[i]+" ", want[i]+" ")
	}
	if !ok {
		return mismatch(what, "\n    "+strings.Join(want, "\n    "), "\n    "+strings.Join(rows, "\n    "))
	}
	return nil
}

// short is a duration to read, not to compare.
func short(t time.Duration) string {
	if t < time.Millisecond {
		return t.Round(time.Microsecond).String()
	}
	return t.Round(time.Millisecond).String()
}
