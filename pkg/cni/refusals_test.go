// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// The messages are an API server's; tests/plugin has it say most of them.
func TestAdviceOnRefusal(t *testing.T) {
	resource := v1alpha1.Resource("ipallocations")
	forbidden := func(why string) error { return apierrors.NewForbidden(resource, "p.10.0.0.1", errors.New(why)) }
	page := apierrors.NewGenericServerResponse(http.StatusForbidden, "POST", resource, "", "<html>no</html>", 0, true)
	for _, tc := range []struct {
		name string
		err  error
		want string // empty: no advice
	}{
		{"quota", forbidden("exceeded quota: small, requested: count/ipallocations.nv-ipam.nvidia.com=1, used: 5, limited: 5"), "ResourceQuota small of"},
		{"quota not counted", forbidden("status unknown for quota: small, resources: count/ipallocations.nv-ipam.nvidia.com"), "ResourceQuota small of"},
		{"namespace ends", forbidden("unable to create new content in namespace pools because it is being terminated"), "deleted the pools' namespace"},
		{"policy", forbidden("ValidatingAdmissionPolicy 'mine' with binding 'b' denied request: exceeded quota: x"), "get validatingadmissionpolicy mine -o yaml"},
		{"CRD's rules", apierrors.NewInvalid(schema.GroupKind{Group: v1alpha1.GroupName, Kind: "IPAllocation"}, "x", nil), "the CRD's rules"},
		{"webhook", forbidden(`admission webhook "deny.example.com" denied the request: User "x" cannot`), "webhook deny.example.com refused"},
		{"webhook away", apierrors.NewInternalError(errors.New(`failed calling webhook "deny.example.com": failed to call webhook: Post`)), "webhook deny.example.com does not answer"},
		{"RBAC", forbidden(`User "system:node:a" cannot create resource "ipallocations" in API group "nv-ipam.nvidia.com" in the namespace "pools"`), "RoleBinding"},
		{"RBAC on nodes", apierrors.NewForbidden(schema.GroupResource{Resource: "nodes"}, "a", errors.New(`User "x" cannot get resource "nodes" in API group "" at the cluster scope`)), "needs get on nodes"},
		{"RBAC on pods", apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "a", errors.New(`User "x" cannot get resource "pods" in API group "" in the namespace "ml"`)), "needs get on pods"},
		{"nobody", forbidden(`User "system:anonymous" cannot create resource "ipallocations"`), "no credentials at all"},
		{"node authorizer", forbidden(`User "system:node:a" cannot get resource "pods" in API group "" in the namespace "x": no relationship found between node 'a' and this object`), "node authorizer"},
		{"admission plugin", forbidden("annotation is not allowed"), "an admission plugin"},
		{"namespace", apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, "pools"), "poolsNamespace"},
		{"unauthorized", apierrors.NewUnauthorized("Unauthorized"), "revoked"},
		{"a proxy's page", page, "in front of the API server"},
		{"wrapped", fmt.Errorf("claiming: %w", errors.Join(errors.New("x"), forbidden("exceeded quota: small, requested"))), "ResourceQuota small of"},
		{"not found", apierrors.NewNotFound(resource, "p.10.0.0.1"), ""},
		{"conflict", apierrors.NewConflict(resource, "p", errors.New(`User "x" cannot`)), ""},
		{"no answer", errors.New("exceeded quota: x"), ""},
		{"nothing", nil, ""},
	} {
		got := adviceOnRefusal(tc.err)
		if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}
