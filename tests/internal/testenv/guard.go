// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A guard kills the components and removes their directory when this process
// ends without doing so: a test that times out panics, and Ctrl-C runs no
// deferred function.
//
// It is a shell that waits for the end of a pipe that only this process holds.
// Every component is started by a script that leaves its process ID.
type guard struct {
	dir  string
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

const guardScript = `cat
for f in "$1"/*.pid; do
	[ -e "$f" ] || continue
	read -r pid <"$f"
	kill -KILL "$pid"
done
rm -rf "$1"`

func newGuard(dir string) (*guard, error) {
	cmd := exec.Command("sh", "-c", guardScript, "crd-ipam-guard", dir)
	// Ctrl-C goes to the whole group of this process.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	return &guard{dir: dir, cmd: cmd, pipe: pipe}, cmd.Start()
}

// wrap returns a script that runs the binary and leaves its process ID.
func (g *guard) wrap(binary string) (string, error) {
	name := filepath.Base(binary)
	path := filepath.Join(g.dir, name)
	script := fmt.Sprintf("#!/bin/sh\necho $$ >'%s.pid'\nexec '%s' \"$@\"\n", path, binary)
	return path, os.WriteFile(path, []byte(script), 0o700)
}

// kill kills a component and returns when it is gone: reaped by its parent, who
// waits for it.
func (g *guard) kill(name string) error {
	data, err := os.ReadFile(filepath.Join(g.dir, name+".pid"))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return err
	}
	for err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
		time.Sleep(10 * time.Millisecond) // between two polls
	}
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

// forget is for a component that has ended: its process ID may be another's soon.
func (g *guard) forget(name string) error {
	err := os.Remove(filepath.Join(g.dir, name+".pid"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// release ends the guard. The components have ended already; where stopping
// one failed, the guard does it.
func (g *guard) release() error {
	return errors.Join(g.pipe.Close(), g.cmd.Wait())
}
