// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// machine is a set of namespaces whose init is this program (see init.go). All
// that runs on a machine, all that is mounted and its links go away when its init
// is killed: that is how a machine crashes, and how it is cleaned up.
type machine struct {
	name string
	dir  string // its directory below the cluster's
}

// spec is what the init of a machine has to do.
type spec struct {
	Name string `json:"name"`
	// Disk is the directory with the machine's own /etc, /opt, /var/lib and
	// /var/log; empty for a machine that uses the host's.
	Disk string `json:"disk,omitempty"`
	// Services are kept running.
	Services []service `json:"services"`
	// Logs is where their output goes, a file each, and Hold the directory in
	// which a file of a service's name keeps it from being started again.
	Logs string `json:"logs"`
	Hold string `json:"hold"`
}

type service struct {
	Name string   `json:"name"`
	Args []string `json:"args"` // with the program's path
	Env  []string `json:"env,omitempty"`
}

func (m *machine) path(elem ...string) string {
	return filepath.Join(append([]string{m.dir}, elem...)...)
}

// start boots the machine. connect is called when its network namespace exists
// and before anything runs in it.
func (m *machine) start(s spec, connect func(pid int) error) error {
	s.Name, s.Logs, s.Hold = m.name, m.path("logs"), m.path("hold")
	for _, dir := range []string{s.Logs, s.Hold} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := write(m.path("spec.json"), string(text)); err != nil {
		return err
	}
	log, err := os.OpenFile(m.path("logs", "init.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	wait, proceed, err := os.Pipe()
	if err != nil {
		return err
	}
	defer wait.Close()
	defer proceed.Close()
	cmd := &exec.Cmd{
		Path:   self,
		Args:   []string{self, initName, m.path("spec.json")},
		Env:    os.Environ(),
		Dir:    "/",
		Stdin:  wait,
		Stdout: log,
		Stderr: log,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET,
			Setsid:     true,
		},
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", m.name, err)
	}
	go func() { _ = cmd.Wait() }() // no zombie is left of it; whoever starts it may be gone before
	err = m.remember(cmd.Process.Pid)
	if err == nil {
		err = connect(cmd.Process.Pid)
	}
	if err == nil {
		_, err = proceed.WriteString("go\n")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("start %s: %w", m.name, err), m.kill())
	}
	return nil
}

// remember notes the process, with the time of its start: process IDs are used
// again.
func (m *machine) remember(pid int) error {
	started, err := startTime(pid)
	if err != nil {
		return err
	}
	return write(m.path("init.pid"), fmt.Sprintf("%d %s\n", pid, started))
}

// pid of the machine's init, 0 where it does not run.
func (m *machine) pid() int {
	text, err := os.ReadFile(m.path("init.pid"))
	if err != nil {
		return 0
	}
	noted, started, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	pid, err := strconv.Atoi(noted)
	if err != nil {
		return 0
	}
	if now, err := startTime(pid); err != nil || now != started {
		return 0
	}
	return pid
}

// startTime of a process, in clock ticks since the machine's boot. A zombie has
// ended.
func startTime(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// After the name, which may contain anything: state, parent, …; the start is
	// field 22 of proc(5).
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if fields[0] == "Z" || fields[0] == "X" {
		return "", os.ErrProcessDone
	}
	return fields[19], nil
}

// kill ends the machine at once, and returns when nothing of it runs.
func (m *machine) kill() error {
	pid := m.pid()
	if pid == 0 {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill %s: %w", m.name, err)
	}
	return poll(context.Background(), time.Minute, fmt.Sprintf("processes of %s to end", m.name), func() error {
		if m.pid() != 0 {
			return fmt.Errorf("process %d is still there", pid)
		}
		return nil
	})
}

// command returns a command that will run on the machine.
func (m *machine) command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	pid := m.pid()
	if pid == 0 {
		return nil, fmt.Errorf("%s does not run", m.name)
	}
	enter := []string{"--target", strconv.Itoa(pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--"}
	return exec.CommandContext(ctx, "nsenter", append(enter, args...)...), nil
}

// servicePID is the process ID, as the host sees it, of a service on the machine.
func (m *machine) servicePID(name string) (int, error) {
	init := m.pid()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // ended
		}
		head, rest, _ := strings.Cut(string(text), ") ")
		_, comm, _ := strings.Cut(head, " (")
		fields := strings.Fields(rest)
		// The kernel keeps 15 characters of a name.
		if len(fields) > 1 && fields[1] == strconv.Itoa(init) && comm == name[:min(15, len(name))] {
			return strconv.Atoi(strings.Fields(head)[0])
		}
	}
	return 0, fmt.Errorf("%s does not run on %s", name, m.name)
}

// stop kills a service, which stays down until it is resumed.
func (m *machine) stop(service string) error {
	if err := write(m.path("hold", service), ""); err != nil {
		return err
	}
	pid, err := m.servicePID(service)
	if err != nil {
		return err
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

func (m *machine) resume(service string) error { return os.Remove(m.path("hold", service)) }

// poll calls f until it returns nil. An error says what was waited for, and the
// last one of f.
func poll(ctx context.Context, timeout time.Duration, what string, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w: %w", what, ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
