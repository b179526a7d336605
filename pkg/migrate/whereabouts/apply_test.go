// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package whereabouts

import (
	"errors"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kubetesting "k8s.io/client-go/testing"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	ipamfake "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/fake"
)

// An entry of which the API server takes no allocation keeps no later one from being claimed, and
// is told. A policy that refuses all of them ends it: it may be changed.
func TestApplyGoesOnAfterWhatIsRefused(t *testing.T) {
	kind := schema.GroupKind{Group: v1alpha1.GroupName, Kind: "IPAllocation"}
	invalid := func(name string) error {
		return apierrors.NewInvalid(kind, name, field.ErrorList{field.Invalid(field.NewPath("spec", "interfaceName"), "a b", "should match")})
	}
	policy := func(name string) error {
		err := apierrors.NewForbidden(v1alpha1.Resource("ipallocations"), name, errors.New("ValidatingAdmissionPolicy denied request"))
		err.ErrStatus.Reason, err.ErrStatus.Code = metav1.StatusReasonInvalid, 422
		err.ErrStatus.Details.Causes = []metav1.StatusCause{{Message: "denied"}}
		return err
	}
	for name, tc := range map[string]struct {
		refuse  func(name string) error
		created int
		ends    bool
	}{
		"an entry that cannot be": {invalid, 2, false},
		"a policy":                {policy, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := state{
				networks: []network{nad("a", `{"type":"whereabouts","range":"10.0.0.0/24"}`)},
				ranges:   []rangePool{ranged("10.0.0.0-24", "10.0.0.0/24", map[string]entry{"5": in("c", "p"), "6": in("d", "q"), "7": in("e", "r")})},
			}
			made := planOf(s).pools[0].pool
			made.Annotations = map[string]string{annotationFrom: " 10.0.0.0/24"}
			s.pools = []v1alpha1.IPPool{*made}
			p := planOf(s)
			ipam := ipamfake.NewSimpleClientset()
			ipam.PrependReactor("create", "ipallocations", func(action kubetesting.Action) (bool, runtime.Object, error) {
				if a := action.(kubetesting.CreateAction).GetObject().(*v1alpha1.IPAllocation); a.Spec.Address == "10.0.0.6" {
					return true, nil, tc.refuse(a.Name)
				}
				return false, nil, nil
			})
			err := p.apply(t.Context(), &clients{ipam: ipam.NvIpamV1alpha1()})
			if p.created != tc.created || (err != nil) != tc.ends {
				t.Fatalf("%d were created, %v", p.created, err)
			}
			if tc.ends {
				return
			}
			if c := p.claims[1]; c.action != refused || !strings.Contains(c.remark, "spec.interfaceName") || !c.pending() {
				t.Errorf("%s: %s", c.action, c.remark)
			}
			if err := p.unsolved(); !errors.Is(err, ErrRefused) || errors.Is(err, ErrConflicts) || !strings.Contains(p.String(), ", 1 refused; ") {
				t.Errorf("%v; %s", err, p)
			}
		})
	}
}
