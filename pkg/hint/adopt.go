// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Close keeps ADDs of this node waiting while addresses are adopted. It has to be
// repeated: after settleTime the node is open again, since whoever adopts may
// have died, and pods must not depend on that.
func (h *Hint) Close() error {
	node := &Hint{dir: h.root}
	return node.rename(func(tmp string) error { return os.WriteFile(tmp, nil, 0o600) }, "closed")
}

// Open ends Close.
func (h *Hint) Open() error {
	err := os.Remove(filepath.Join(h.root, "closed"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Closed reports whether ADDs of this node have to wait.
func (h *Hint) Closed() bool {
	info, err := os.Lstat(filepath.Join(h.root, "closed"))
	return err == nil && time.Since(info.ModTime()).Abs() < settleTime
}
