// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package simnode

import (
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// Process is a running command that does not outlive this process.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// StartProcess starts cmd.
func StartProcess(cmd *exec.Cmd) (*Process, error) {
	p := &Process{cmd: cmd, done: make(chan struct{})}
	// Ctrl-C in the terminal is not for it: Stop is.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// Pdeathsig comes when the thread that started the command ends, which in
		// Go may be long before the process does: this one stays until then.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	return p, <-started
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// stopPatience is how long a process may take to end when it is asked to.
const stopPatience = 5 * time.Second

// Stop asks the process to end, insists after a while, and returns how it ended.
func (p *Process) Stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.done:
	case <-time.After(stopPatience):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	return p.err
}
