// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// Pod reads the metadata of a pod of this node, as etcd has it now. Every kubelet may do
// that. The error says so if the pod is another one than ref names.
func (l *Ledger) Pod(ctx context.Context, ref v1alpha1.PodReference) (meta *metav1.ObjectMeta, err error) {
	err = Retry(ctx, func(ctx context.Context) (err error) {
		meta, err = metadata(ctx, l.Client.RESTClient().Get().AbsPath("/api/v1/namespaces", ref.Namespace, "pods", ref.Name))
		return err
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading pod %s/%s: %w", ref.Namespace, ref.Name, err)
	case ref.UID != "" && meta.UID != ref.UID:
		return nil, fmt.Errorf("reading pod %s/%s: it has UID %s by now, and this container is of %s", ref.Namespace, ref.Name, meta.UID, ref.UID)
	}
	return meta, nil
}
