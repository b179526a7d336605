// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
)

// Before is the commit of an earlier version: the last one without an installer that asks
// the plugin for its STATUS, without policies against deletion, with the CRDs in the
// overlays, and with the hint as it was then.
const Before = "533c9ad77e1d708049f2b698016c389c433c2049"

// Checkout writes the files of a commit into a directory. A shallow clone does not have it,
// which the error says.
func Checkout(ctx context.Context, commit, dir string) error {
	root, err := Root()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", `git -C "$ROOT" archive "$COMMIT" | tar -x`)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "ROOT="+root, "COMMIT="+commit)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("commit %s cannot be read (git fetch --unshallow, if this is a shallow clone): %w\n%s", commit, err, out)
	}
	return nil
}
