// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Perf measures what addresses cost: the real plugin, a process for each call,
// and the real controller, with a real API server over TLS and an etcd that
// flushes to the disk.
//
// The floor is a fresh process that makes one create with the same credentials and
// ends. Where one call is made at a time (calls, pools, allocations) it is measured
// in turns with the plugin: the ratio of the two holds on other machines and on busy
// ones. In throughput it is measured once before the lines that are compared with
// it, and the other phases have none: their times and rates are of one run on one
// machine.
//
// It is run by "make bench", which writes docs/benchmarks.md and .json. An
// unexpected error of any call ends the run.
package main

import (
	"context"
	"errors"
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

// The size of the largest cluster, in the report that is written.
const (
	defaultTotal = 100_000
	defaultNodes = 5_000
)

func main() {
	var o options
	flag.StringVar(&o.only, "only", "", "phases to run, separated by commas; all where empty")
	flag.StringVar(&o.plugin, "plugin", "", "plugin to measure; bin/nv-ipam where empty")
	flag.StringVar(&o.also, "also", "", "other builds of the plugin, separated by commas, whose ADD and DEL are measured in turns with the others")
	flag.StringVar(&o.controller, "controller", "", "controller to measure; bin/ipam-controller where empty")
	flag.BoolVar(&o.write, "write", false, "write docs/benchmarks.md and docs/benchmarks.json; needs all phases")
	flag.IntVar(&o.calls, "calls", 300, "calls of each kind, where one is made at a time")
	flag.IntVar(&o.at, "each", 200, "calls for each line of the throughput table")
	flag.IntVar(&o.total, "allocations", defaultTotal, "allocations and pods in the largest cluster")
	flag.IntVar(&o.nodes, "nodes", defaultNodes, "nodes in the largest cluster")
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
	chosen := all
	if o.only != "" {
		chosen = strings.Split(o.only, ",")
	}
	for _, name := range chosen {
		if !slices.Contains(all, name) {
			return nil, fmt.Errorf("there is no phase %q: want some of %s", name, strings.Join(all, ","))
		}
	}
	switch {
	case o.write && o.only != "":
		return nil, fmt.Errorf("-write needs all phases, not only %s", o.only)
	case o.write && (o.plugin != "" || o.controller != "" || o.also != "" || o.total != defaultTotal || o.nodes != defaultNodes):
		return nil, errors.New("-write goes with no other programs and no other cluster: the page names this commit, and its targets are those of the whole size")
	case slices.Contains(chosen, "controller") && (o.total <= leaks || o.total > o.nodes*podsPerNode):
		return nil, fmt.Errorf("the controller's phase has %d pods on a node and makes leaks of %d: with -nodes %d, -allocations must be above %d and at most %d, not %d",
			podsPerNode, leaks, o.nodes, leaks, o.nodes*podsPerNode, o.total)
	}
	return chosen, nil
}
