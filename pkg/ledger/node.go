// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"fmt"
)

// Labels reads the labels of this node's own Node object from the API server's watch
// cache, which may be some milliseconds late. Every kubelet may do that.
func (l *Ledger) Labels(ctx context.Context) (labels map[string]string, err error) {
	err = Retry(ctx, func(ctx context.Context) error {
		meta, err := metadata(ctx, l.Client.RESTClient().Get().AbsPath("/api/v1/nodes", l.Node).Param("resourceVersion", "0"))
		if err == nil {
			labels = meta.Labels
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the labels of node %s: %w", l.Node, err)
	}
	return labels, nil
}
