// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Peak runs a command and prints its peak resident memory in KiB on file
// descriptor 3.
//
// It is a program of its own because Linux counts in what was resident in the
// process that started the command: that has to be less than what is measured.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

func main() {
	cmd := exec.Command(os.Args[1], os.Args[2:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprintln(os.NewFile(3, "result"), cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss)
}
