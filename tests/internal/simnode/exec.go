// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package simnode

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// netnsExec is how libcni runs plugins: in a node's namespace. libcni's own way
// leaves the plugins that a plugin calls behind when it is cancelled.
type netnsExec struct {
	invoke.RawExec // for FindInPath
	version.PluginDecoder
	netns *Netns
}

func newExec(n *Netns) invoke.Exec { return &netnsExec{netns: n} }

// ExecPlugin implements invoke.Exec.
func (e *netnsExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Stdin = environ, bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A group of its own, with whatever the plugin calls: Ctrl-C in the terminal
	// is not for it, and cancelling is for all of it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	// A child starts in the namespace of the thread that starts it, and Pdeathsig
	// is about that thread too: so it waits in there.
	err := e.netns.do(func() error {
		if err := cmd.Start(); err != nil {
			return err
		}
		release, err := watchGroup(cmd.Process.Pid)
		if err != nil {
			return errors.Join(err, cmd.Cancel(), cmd.Wait())
		}
		return errors.Join(cmd.Wait(), release())
	})
	if err == nil {
		return stdout.Bytes(), nil
	}
	said := &types.Error{}
	if json.Unmarshal(stdout.Bytes(), said) == nil && said.Msg != "" {
		return nil, said
	}
	return nil, fmt.Errorf("plugin %s: %w: %s%s", filepath.Base(path), err, stdout.Bytes(), stderr.Bytes())
}

// watchGroup kills a process group if this process ends before it calls release.
// Pdeathsig alone ends the plugin, but not the one that the plugin has called,
// which would go on, and write to a disk that is not there any more.
func watchGroup(group int) (release func() error, err error) {
	cmd := exec.Command("sh", "-c", `read -r released || kill -s KILL -- "-$1"`, "simnode-watch", strconv.Itoa(group))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	pipe, err := cmd.StdinPipe() // whose end only this process holds
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() error {
		_, err := pipe.Write([]byte("\n"))
		return errors.Join(err, pipe.Close(), cmd.Wait())
	}, nil
}
