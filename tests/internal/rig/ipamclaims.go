// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// OwnerPod is a form of status.ownerPod in a published version of IPAMClaim's CRD.
type OwnerPod struct{ name, schema, required string }

// The forms.
var (
	OwnerPodIsAnObject = OwnerPod{"object", `{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}`, ""}
	OwnerPodIsAName    = OwnerPod{"name", `{"type": "string"}`, `, "ownerPod"`}
)

const (
	crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
	crd  = "ipamclaims.k8s.cni.cncf.io"
)

// IPAMClaimCRD is the CRD of IPAMClaims, in JSON, with what the published versions have in
// common and one form of status.ownerPod.
func IPAMClaimCRD(form OwnerPod) string {
	return fmt.Sprintf(`{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": %q, "labels": {"form": %q}},
		"spec": {"group": "k8s.cni.cncf.io", "scope": "Namespaced",
			"names": {"kind": "IPAMClaim", "listKind": "IPAMClaimList", "plural": "ipamclaims", "singular": "ipamclaim"},
			"versions": [{"name": "v1alpha1", "served": true, "storage": true, "subresources": {"status": {}},
				"schema": {"openAPIV3Schema": {"type": "object", "properties": {
					"spec": {"type": "object", "required": ["network", "interface"], "properties": {
						"network": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]},
						"interface": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}},
					"status": {"type": "object", "required": ["ips"%s], "properties": {
						"ips": {"type": "array", "items": {"type": "string"}}, "ownerPod": %s,
						"conditions": {"type": "array", "items": {"type": "object", "required": ["lastTransitionTime", "message", "reason", "status", "type"], "properties": {
							"lastTransitionTime": {"type": "string", "format": "date-time"}, "message": {"type": "string"}, "reason": {"type": "string", "minLength": 1},
							"status": {"type": "string"}, "type": {"type": "string"}, "observedGeneration": {"type": "integer", "format": "int64"}}}}}}}}}}]}}`,
		crd, form.name, form.required, form.schema)
}

// InstallIPAMClaims applies the CRD. It replaces one of the other form.
func InstallIPAMClaims(t testing.TB, c rest.Interface, form OwnerPod) {
	t.Helper()
	var there struct{ Metadata metav1.ObjectMeta }
	data, err := c.Get().AbsPath(crds, crd).Do(t.Context()).Raw()
	if err == nil && json.Unmarshal(data, &there) == nil && there.Metadata.Labels["form"] == form.name {
		return
	}
	RemoveIPAMClaims(t, c)
	if err := c.Post().AbsPath(crds).Body([]byte(IPAMClaimCRD(form))).Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "IPAMClaims are served", func() bool {
		_, err := ledger.IPAMClaims{Client: c}.Get(t.Context(), "default", "none")
		return ledger.NotFound(err)
	})
}

// RemoveIPAMClaims deletes the CRD and all claims.
func RemoveIPAMClaims(t testing.TB, c rest.Interface) {
	t.Helper()
	if err := c.Delete().AbsPath(crds, crd).Do(context.Background()).Error(); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	Eventually(t, "IPAMClaims are gone", func() bool {
		_, err := ledger.IPAMClaims{Client: c}.Get(context.Background(), "default", "none")
		return apierrors.IsNotFound(err) && !ledger.NotFound(err) && apierrors.IsNotFound(c.Get().AbsPath(crds, crd).Do(context.Background()).Error())
	})
}

// IPAMClaim creates a claim for a network, whose status has these addresses already.
func IPAMClaim(t testing.TB, c rest.Interface, namespace, name, network string, ips ...string) *ledger.IPAMClaim {
	t.Helper()
	body, err := json.Marshal(map[string]any{
		"apiVersion": "k8s.cni.cncf.io/v1alpha1", "kind": "IPAMClaim", "metadata": map[string]any{"name": name},
		"spec": map[string]any{"network": network, "interface": ""},
	})
	if err != nil {
		t.Fatal(err)
	}
	path := "/apis/k8s.cni.cncf.io/v1alpha1/namespaces/" + namespace + "/ipamclaims"
	if err := c.Post().AbsPath(path).Body(body).Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
	claim := must(ledger.IPAMClaims{Client: c}.Get(t.Context(), namespace, name))(t)
	if len(ips) > 0 {
		status := ledger.IPAMClaimStatus{IPs: ips}
		written, err := ledger.IPAMClaims{Client: c}.PatchStatus(t.Context(), claim, status, metav1.PatchOptions{})
		if apierrors.IsInvalid(err) {
			status.OwnerPod.Text = true
			written, err = ledger.IPAMClaims{Client: c}.PatchStatus(t.Context(), claim, status, metav1.PatchOptions{})
		}
		claim = must(written, err)(t)
	}
	return claim
}

// DeleteIPAMClaim deletes a claim.
func DeleteIPAMClaim(t testing.TB, c rest.Interface, namespace, name string) {
	t.Helper()
	path := "/apis/k8s.cni.cncf.io/v1alpha1/namespaces/" + namespace + "/ipamclaims/" + name
	if err := c.Delete().AbsPath(path).Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
}
