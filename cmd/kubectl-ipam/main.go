// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// kubectl-ipam answers an operator's questions about addresses, as a plugin of kubectl. It
// works with the rights of whoever runs it. docs/kubectl-ipam.md describes it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	_ "k8s.io/client-go/plugin/pkg/client/auth" // the users that kubectl knows

	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

var version = "dev" // set by the linker

// The exit codes.
const (
	exitFindings   = 1 // the answer is not what one hopes for
	exitError      = 2 // there is no answer
	exitIncomplete = 3 // nothing was found, and a part could not be looked at
)

// exit is an error that has been said already.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// memory is what the program should need at most, in bytes: the garbage collector works
// harder in a cluster of hundreds of thousands of addresses, and not in others.
const memory = 200 << 20

func main() {
	debug.SetMemoryLimit(memory)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := newRoot(os.Stdin, os.Stdout, os.Stderr).ExecuteContext(ctx)
	stop()
	var code exit
	switch {
	case errors.As(err, &code):
		os.Exit(int(code))
	case err != nil:
		fmt.Fprintln(os.Stderr, "error:", pool.Printable(err.Error()))
		os.Exit(exitError)
	}
}
