// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// Reasons of events.
const (
	// reasonDuplicate: nv-ipam gave an address twice.
	reasonDuplicate = "DuplicateAddress"
	// reasonRefused: an address that nv-ipam gave cannot be recorded.
	reasonRefused = "AddressNotRecorded"
)

// reporter makes events on pools.
type reporter struct {
	Pools     clientv1alpha1.NvIpamV1alpha1Interface
	Events    clientcorev1.EventInterface
	Namespace string
	Node      string
}

// textOf is the reason and the message of an event.
func (r *reporter) textOf(o entryOutcome) (reason, message string) {
	who := fmt.Sprintf("pod %s/%s on node %s (interface %s) answers on it", o.Pod.Namespace, o.Pod.Name, r.Node, o.Interface)
	if o.Result == refused {
		return reasonRefused, fmt.Sprintf("%s, which nv-ipam gave, cannot be recorded, and another pod may be given it: %s: %s", o.Address, who, o.Detail)
	}
	return reasonDuplicate, fmt.Sprintf("nv-ipam gave %s twice: %s, and it is %s", o.Address, who, o.Detail)
}

// unsolved says on the pool that a pod has an address which it does not hold. The event's
// name is made of what it says, so that a second run does not say it again.
func (r *reporter) unsolved(ctx context.Context, o entryOutcome) error {
	ctx, cancel := context.WithTimeout(ctx, entryTime)
	defer cancel()
	pool, err := ledger.Pools{Client: r.Pools.RESTClient(), Namespace: r.Namespace}.Get(ctx, o.Pool)
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(r.Node + "/" + o.key() + "/" + o.Detail))
	now := metav1.NewTime(time.Now())
	reason, message := r.textOf(o)
	_, err = r.Events.Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: o.Pool.Name + "." + hex.EncodeToString(sum[:8]), Namespace: r.Namespace},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: v1alpha1.GroupVersion.String(), Kind: string(o.Pool.Kind), Namespace: r.Namespace, Name: o.Pool.Name, UID: pool.Meta.UID,
		},
		Type:           corev1.EventTypeWarning,
		Reason:         reason,
		Message:        message,
		Source:         corev1.EventSource{Component: "ipam-node", Host: r.Node},
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}
