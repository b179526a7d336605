// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	// versionTime is what asking a plugin for its version may take, and statusTime
	// what asking for its status may: the plugin ends its own STATUS before that.
	versionTime = 10 * time.Second
	statusTime  = 30 * time.Second
)

// status runs the installed plugin for its STATUS as a runtime would: with the
// installed configuration, and with the host's files if Root is set. It returns nil if
// pods can get addresses here, else the plugin's own message.
func (h *Host) status(ctx context.Context) error {
	stdin, err := json.Marshal(map[string]any{
		"cniVersion": "1.1.0", "name": "crd-ipam-installer", "type": binaryName,
		// A pool need not exist for a STATUS, but forcePoolName wants a name.
		"ipam": map[string]string{"type": binaryName, "confDir": h.ConfDir, "poolName": "status"},
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	if _, err := ask(ctx, h.Root, h.Binary(), "STATUS", string(stdin)); err != nil {
		return fmt.Errorf("STATUS of %s: %w", h.Binary(), err)
	}
	return nil
}

// runs checks that a file is a plugin that this machine can run.
func runs(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, versionTime)
	defer cancel()
	out, err := ask(ctx, "", path, "VERSION", `{"cniVersion":"1.1.0"}`)
	if err != nil {
		return fmt.Errorf("running %s for its version: %w", path, err)
	}
	var answer struct {
		SupportedVersions []string `json:"supportedVersions"`
	}
	if err := json.Unmarshal(out, &answer); err != nil || len(answer.SupportedVersions) == 0 {
		return fmt.Errorf("%s is no CNI plugin: asked for its version it says %q", path, out)
	}
	return nil
}

// ask runs a plugin that has no container to work on, below root if that is set, and
// returns what it prints.
func ask(ctx context.Context, root, path, verb, stdin string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = []string{"CNI_COMMAND=" + verb, "CNI_PATH=" + filepath.Dir(path), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Dir = "/"
	if root != "" && root != "/" {
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	}
	cmd.WaitDelay = time.Second // for an exec credential plugin that keeps the pipes
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	var said struct {
		Code         int
		Msg, Details string
	}
	if json.Unmarshal(out, &said) == nil && said.Msg != "" {
		parts := []string{said.Msg, said.Details, strings.TrimSpace(stderr.String())} // a credential program writes there
		return nil, errors.New(strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" }), "; "))
	}
	return nil, fmt.Errorf("%w: %s%s", err, out, stderr.Bytes())
}
