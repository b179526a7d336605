// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package simnode

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
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
	err := e.netns.do(cmd.Run)
	if err == nil {
		return stdout.Bytes(), nil
	}
	said := &types.Error{}
	if json.Unmarshal(stdout.Bytes(), said) == nil && said.Msg != "" {
		return nil, said
	}
	return nil, fmt.Errorf("plugin %s: %w: %s%s", filepath.Base(path), err, stdout.Bytes(), stderr.Bytes())
}
