// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// Reservation is what is to be reserved.
type Reservation struct {
	// Addresses are single ones, or ranges, "10.0.0.20-10.0.0.29".
	Addresses []string
	Pool      string
	// Pod is NAMESPACE/NAME, "" for none.
	Pod    string
	Reason string
	// Name of the IPReservation; "" for one of pool and first address.
	Name string
}

// Reservation returns the IPReservation that r stands for, and writes nothing. It is an
// error if the pool could not keep the addresses.
func (c *Cluster) Reservation(ctx context.Context, r Reservation) (*v1alpha1.IPReservation, error) {
	pools, err := c.pools(ctx)
	if err != nil {
		return nil, err
	}
	found, err := (&record{sites: []*site{{pools: pools}}, only: c.Namespace}).find(r.Pool)
	if err != nil {
		return nil, err
	}
	if len(found) > 1 {
		return nil, fmt.Errorf("there are %d pools %q, in different namespaces or of both kinds: name the namespace with -n, or apply an IPReservation", len(found), r.Pool)
	}
	o := found[0]
	res := &v1alpha1.IPReservation{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.KindIPReservation},
		ObjectMeta: metav1.ObjectMeta{Namespace: o.Meta.Namespace, Name: r.Name},
		Spec:       v1alpha1.IPReservationSpec{PoolRef: o.Ref, Addresses: r.Addresses, Reason: r.Reason},
	}
	if r.Pod != "" {
		namespace, name, both := strings.Cut(r.Pod, "/")
		if !both {
			return nil, fmt.Errorf("--pod %q: want NAMESPACE/NAME", r.Pod)
		}
		res.Spec.Pod = &v1alpha1.ReservedPod{Namespace: namespace, Name: name}
	}
	addresses, errs := o.Reserved(&res.Spec)
	if len(errs) > 0 {
		return nil, fmt.Errorf("%s", pool.Explain(errs))
	}
	if res.Name == "" {
		res.Name = v1alpha1.AllocationName(o.Ref.Name, addresses[0])
	}
	return res, nil
}

// Reserve makes an IPReservation.
func (c *Cluster) Reserve(ctx context.Context, res *v1alpha1.IPReservation) error {
	_, err := c.ipam.IPReservations(res.Namespace).Create(ctx, res, metav1.CreateOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("%w: the installed CRDs are of an earlier version, or not this project's", err)
	}
	return err
}
