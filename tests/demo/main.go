// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Demo walks through what crd-ipam does, on this machine: a real API server, the
// real controller, the real macvlan plugin with nv-ipam under it, and three
// nodes that are network namespaces. Every step checks what it shows.
//
// It is run by "make demo", as root. KEEP=1 leaves everything running before the
// last step, to try things, until Ctrl-C.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	// "go run" does not pass SIGTERM on. This lasts as long as the main thread,
	// which init functions run on.
	_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0)
}

func main() {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "make demo needs root to make network namespaces: run sudo make demo")
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, func() {
		fmt.Println("\nInterrupted: cleaning up. Again, and it ends at once.")
		stop() // and nothing is left even so: see testenv's guard, and simnode
	})
	os.Exit(run(ctx))
}

// run returns the exit code.
func run(ctx context.Context) int {
	start := time.Now()
	d := &demo{terminal: isTerminal(os.Stdout)}
	err := d.walk(ctx)
	if err != nil && ctx.Err() == nil {
		d.printLogs() // first: who looks at a terminal looks at its end
		fmt.Fprintf(os.Stderr, "\nFAILED: %v\n", err)
	}
	cleanErr := d.cleanUp()
	if cleanErr != nil {
		fmt.Fprintln(os.Stderr, "cleaning up:", cleanErr)
	}
	switch {
	case errors.Is(err, errKept):
		return 0
	case ctx.Err() != nil:
		return 130
	case err != nil || cleanErr != nil:
		return 1
	}
	fmt.Printf("\nAll as expected, in %.1f s. Nothing is left running.\n", time.Since(start).Seconds())
	return 0
}

// walk runs the steps in order, up to the first that fails.
func (d *demo) walk(ctx context.Context) error {
	for i, step := range d.steps() {
		if err := ctx.Err(); err != nil {
			return err
		}
		d.heading(fmt.Sprintf("%d. %s", i+1, step.title))
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("step %d, %s: %w", i+1, strings.ToLower(step.title[:1])+step.title[1:], err)
		}
	}
	return nil
}

// cleanUp undoes what was done, the last first.
func (d *demo) cleanUp() error {
	var errs []error
	for i := len(d.undo) - 1; i >= 0; i-- {
		errs = append(errs, d.undo[i]())
	}
	return errors.Join(errs...)
}

// logTail is how many lines of each log are printed when something fails.
const logTail = 10

func (d *demo) printLogs() {
	if d.env == nil {
		return
	}
	// The nodes' are named in the order of the nodes, so no log is printed twice.
	logs, _ := filepath.Glob(filepath.Join(d.env.Dir, "*", "nv-ipam.log"))
	more, _ := filepath.Glob(filepath.Join(d.env.Dir, "*.log"))
	for _, path := range append(logs, more...) {
		text, err := os.ReadFile(path)
		if err != nil || len(text) == 0 {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		name, _ := filepath.Rel(d.env.Dir, path)
		fmt.Fprintf(os.Stderr, "\n--- the end of %s\n%s\n", name, strings.Join(lines[max(0, len(lines)-logTail):], "\n"))
	}
}
