// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Perf measures what addresses cost: the real plugin, a process for each call,
// and the real controller, with a real API server over TLS and an etcd that
// flushes to the disk.
//
// Every phase measures a floor beside the plugin, in turns: a fresh process that
// makes one create with the same credentials and ends. The ratio of the two holds
// on other machines and on busy ones; the times do not.
//
// It is run by "make bench", which writes docs/benchmarks.md and .json. An
// unexpected error of any call ends the run.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

func init() {
	// As long as the main thread lasts, which init functions run on.
	_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0)
}

// phases in the order in which they run: each finds the server as the ones
// before have left it.
var phases = []struct {
	name string
	run  func(*bench) error
}{
	{"calls", (*bench).calls},
	{"throughput", (*bench).throughput},
	{"shared", (*bench).shared},
	{"burst", (*bench).burst},
	{"restart", (*bench).restart},
	{"pools", (*bench).pools},
	{"allocations", (*bench).allocations},
	{"boot", (*bench).boot},
	{"exhausted", (*bench).exhausted},
	{"controller", (*bench).controller},
}

type options struct {
	only       string
	plugin     string
	also       string
	controller string
	write      bool
	calls      int
	at         int
	total      int
	nodes      int
}

func main() {
	var o options
	flag.StringVar(&o.only, "only", "", "phases to run, separated by commas; all where empty")
	flag.StringVar(&o.plugin, "plugin", "", "plugin to measure; bin/nv-ipam where empty")
	flag.StringVar(&o.also, "also", "", "other builds of the plugin, separated by commas, whose ADD and DEL are measured in turns with the others")
	flag.StringVar(&o.controller, "controller", "", "controller to measure; bin/ipam-controller where empty")
	flag.BoolVar(&o.write, "write", false, "write docs/benchmarks.md and docs/benchmarks.json; needs all phases")
	flag.IntVar(&o.calls, "calls", 300, "calls of each kind, where one is made at a time")
	flag.IntVar(&o.at, "each", 200, "calls for each line of the throughput table")
	flag.IntVar(&o.total, "allocations", 100_000, "allocations and pods in the largest cluster")
	flag.IntVar(&o.nodes, "nodes", 5_000, "nodes in the largest cluster")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: FAILED:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	chosen, err := choose(o)
	if err != nil {
		return err
	}
	b, err := start(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		if stopErr := b.stop(); err == nil {
			err = stopErr
		}
	}()
	for _, p := range phases {
		if !slices.Contains(chosen, p.name) {
			continue
		}
		b.say("phase %s", p.name)
		if err := p.run(b); err != nil {
			fmt.Println(b.report.markdown()) // as far as it came
			return fmt.Errorf("phase %s: %w", p.name, err)
		}
	}
	b.say("done")
	b.report.Seconds = int(time.Since(b.started).Seconds())
	fmt.Println(b.report.markdown())
	if !o.write {
		return nil
	}
	root, err := testenv.Root()
	if err != nil {
		return err
	}
	return b.report.write(filepath.Join(root, "docs"))
}

func choose(o options) ([]string, error) {
	var all []string
	for _, p := range phases {
		all = append(all, p.name)
	}
	if o.only == "" {
		return all, nil
	}
	if o.write {
		return nil, fmt.Errorf("-write needs all phases, not only %s", o.only)
	}
	chosen := strings.Split(o.only, ",")
	for _, name := range chosen {
		if !slices.Contains(all, name) {
			return nil, fmt.Errorf("there is no phase %q: want some of %s", name, strings.Join(all, ","))
		}
	}
	return chosen, nil
}
