// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// cluster brings up the cluster that the end-to-end tests use, for whoever wants
// to look around in one: see docs/cluster.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/crd-ipam/crd-ipam/tests/internal/cluster"
)

const usage = `usage: cluster COMMAND
  up                   bring the cluster up, or what of it does not run
  down                 end it and remove all of it
  load ARCHIVE         import an image archive on all nodes
  push LAYOUT NAME     put an image in an OCI layout into the registry that all nodes pull from
  exec NODE COMMAND... run a command on a node
  crash NODE           kill the node, as if its power had gone
  start NODE           boot it again
  stop-apiserver       kill the API server and keep it down
  start-apiserver      let it start again
  logs DIR             copy the logs of all parts to DIR
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, cluster.Open(), os.Args[1:])
	stop()
	var exit *exec.ExitError
	switch {
	case errors.Is(err, errUsage):
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage")

func run(ctx context.Context, c *cluster.Cluster, args []string) error {
	switch strings.Join(args, " ") {
	case "up":
		return up(ctx, c)
	case "down":
		return c.Down()
	case "stop-apiserver":
		return c.StopAPIServer()
	case "start-apiserver":
		return c.StartAPIServer(ctx)
	}
	if len(args) < 2 {
		return errUsage
	}
	switch command, to := args[0], args[1]; command {
	case "load":
		return c.Load(ctx, to)
	case "logs":
		return c.CollectLogs(ctx, to)
	case "push":
		if len(args) != 3 {
			return errUsage
		}
		return c.Push(to, args[2])
	case "exec", "crash", "start":
		node := c.Node(to)
		if node == nil {
			return fmt.Errorf("no node %s", to)
		}
		return onNode(ctx, node, command, args[2:])
	}
	return errUsage
}

func onNode(ctx context.Context, node *cluster.Node, command string, args []string) error {
	switch {
	case command == "exec" && len(args) > 0:
		return execute(ctx, node, args)
	case command == "crash" && len(args) == 0:
		return node.Crash()
	case command == "start" && len(args) == 0:
		return errors.Join(node.Start(), node.AwaitReady(ctx))
	}
	return errUsage
}

func up(ctx context.Context, c *cluster.Cluster) error {
	if err := c.Up(ctx, os.Stdout); err != nil {
		return fmt.Errorf("%w\nlogs are in %s", err, c.Dir())
	}
	fmt.Printf("\nexport KUBECONFIG=%s\n", c.Kubeconfig())
	out, err := c.Kubectl(ctx, "get", "nodes")
	fmt.Print(out)
	return err
}

func execute(ctx context.Context, node *cluster.Node, args []string) error {
	cmd, err := node.Command(ctx, args...)
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}
