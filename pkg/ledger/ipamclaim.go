// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/generated/clientset/versioned/scheme"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// IPAMClaim is what is read of an IPAMClaim (k8s.cni.cncf.io/v1alpha1), by which the owner of
// a virtual machine asks that an interface keeps its addresses. Its CRD is installed by whoever
// needs it. Fields that are not here differ between its versions.
type IPAMClaim struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Spec     struct {
		// Network is the name in the network's configuration; some leave it empty.
		Network string `json:"network"`
	} `json:"spec"`
	Status IPAMClaimStatus `json:"status"`
}

// IPAMClaimStatus is the status of an IPAMClaim.
type IPAMClaimStatus struct {
	// IPs are the addresses with their prefix lengths, one of each family. Once written they
	// stay.
	IPs        []string           `json:"ips"`
	OwnerPod   ownerPod           `json:"ownerPod"`
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Addresses returns the addresses that the status has.
func (s *IPAMClaimStatus) Addresses() (out []netip.Addr, err error) {
	for _, text := range s.IPs {
		addr, _, _ := strings.Cut(text, "/")
		a, err := pool.ParseAddr(addr)
		if err != nil {
			return nil, fmt.Errorf("status.ips: %q is not an address", text)
		}
		out = append(out, a)
	}
	return out, nil
}

// AddressesIn returns the addresses that a claim has, for a pod that names it for a network. It
// returns a pool.RequestError if it is for another network, or if its status cannot be read.
func (c *IPAMClaim) AddressesIn(network string) ([]netip.Addr, error) {
	if c.Spec.Network != "" && c.Spec.Network != network {
		return nil, &pool.RequestError{Message: fmt.Sprintf("IPAMClaim %s/%s is for network %q, and the pod names it for network %q", c.Metadata.Namespace, c.Metadata.Name, c.Spec.Network, network)}
	}
	addrs, err := c.Status.Addresses()
	if err != nil {
		return nil, &pool.RequestError{Message: fmt.Sprintf("IPAMClaim %s/%s: %s: correct its status, or delete the claim", c.Metadata.Namespace, c.Metadata.Name, err)}
	}
	return addrs, nil
}

// ownerPod is the pod that has a claim's addresses now.
type ownerPod struct {
	Name string
	// Text says that it is written as the name alone. There are versions of the CRD with
	// that, and with an object that has the name.
	Text bool
}

// MarshalJSON writes null if there is no pod, or "" if it has to be the name.
func (p ownerPod) MarshalJSON() ([]byte, error) {
	switch {
	case p.Text:
		return json.Marshal(p.Name)
	case p.Name == "":
		return []byte("null"), nil
	}
	return json.Marshal(map[string]string{"name": p.Name})
}

// UnmarshalJSON reads either form.
func (p *ownerPod) UnmarshalJSON(data []byte) error {
	var object struct{ Name string }
	if json.Unmarshal(data, &object) == nil {
		p.Name = object.Name
		return nil
	}
	p.Text = true
	return json.Unmarshal(data, &p.Name)
}

// Owner returns the claim as the owner of an allocation.
func (c *IPAMClaim) Owner() *v1alpha1.AllocationOwner {
	return &v1alpha1.AllocationOwner{
		APIGroup: v1alpha1.IPAMClaimGroup, Kind: v1alpha1.KindIPAMClaim, Namespace: c.Metadata.Namespace, Name: c.Metadata.Name, UID: c.Metadata.UID,
	}
}

// LabelMigration is the label of KubeVirt on a pod that it makes to move a virtual machine
// there, with the UID of the migration.
const LabelMigration = "kubevirt.io/migrationJobUID"

// ErrNoIPAMClaims means that the API server has no such kind, so that it says nothing about
// any claim.
var ErrNoIPAMClaims = errors.New("the API server has no IPAMClaims of k8s.cni.cncf.io/v1alpha1: apply their CRD")

// IPAMClaims are those in the API server.
type IPAMClaims struct{ Client rest.Interface }

// Get reads a claim as etcd has it now, with one request.
func (c IPAMClaims) Get(ctx context.Context, namespace, name string) (*IPAMClaim, error) {
	return c.answer(ctx, c.named(c.Client.Get(), namespace, name))
}

// PatchStatus writes the status of a claim, as it was read.
func (c IPAMClaims) PatchStatus(ctx context.Context, claim *IPAMClaim, status IPAMClaimStatus, opts metav1.PatchOptions) (*IPAMClaim, error) {
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": claim.Metadata.UID, "resourceVersion": claim.Metadata.ResourceVersion},
		"status":   status,
	})
	if err != nil {
		return nil, err
	}
	request := c.named(c.Client.Patch(types.MergePatchType), claim.Metadata.Namespace, claim.Metadata.Name).SubResource("status")
	return c.answer(ctx, request.VersionedParams(&opts, scheme.ParameterCodec).Body(body))
}

func (c IPAMClaims) named(request *rest.Request, namespace, name string) *rest.Request {
	return request.AbsPath("/apis/" + v1alpha1.IPAMClaimGroup + "/v1alpha1").Namespace(namespace).Resource("ipamclaims").Name(name)
}

func (c IPAMClaims) answer(ctx context.Context, request *rest.Request) (*IPAMClaim, error) {
	claim := &IPAMClaim{}
	err := readAs(ctx, request, "application/json", claim)
	switch {
	case apierrors.IsNotFound(err) && !NotFound(err):
		return nil, fmt.Errorf("%w (%w)", ErrNoIPAMClaims, err)
	case err != nil:
		return nil, err
	}
	return claim, nil
}

// IPAMClaim reads a claim. The error says what is missing.
func (l *Ledger) IPAMClaim(ctx context.Context, namespace, name string) (claim *IPAMClaim, err error) {
	var missing error
	err = Retry(ctx, func(ctx context.Context) (err error) {
		claim, err = IPAMClaims{l.Client.RESTClient()}.Get(ctx, namespace, name)
		if errors.Is(err, ErrNoIPAMClaims) { // the next ADD will see whether that has changed
			missing, err = err, nil
		}
		return err
	})
	if err = errors.Join(err, missing); err != nil {
		return nil, fmt.Errorf("reading IPAMClaim %s/%s: %w", namespace, name, err)
	}
	return claim, nil
}
