// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// fieldsOf adds the names of a type's fields in JSON.
func fieldsOf(t reflect.Type, into map[string]bool) {
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if options == "inline" {
			fieldsOf(f.Type, into)
		} else {
			into[name] = true
		}
	}
}

// Each field of a pool's specification is nv-ipam's, or it is reported where the installed CRD has
// dropped it: nobody forgets a new one.
func TestDroppedFieldsAreAllThatNVIPAMLacks(t *testing.T) {
	got := map[string]bool{}
	fieldsOf(reflect.TypeFor[v1alpha1.IPPoolSpec](), got)
	fieldsOf(reflect.TypeFor[v1alpha1.CIDRPoolSpec](), got)
	for _, theirs := range []string{
		"cidr", "defaultGateway", "exclusions", "gateway", "gatewayIndex", "nodeSelector", "perNodeBlockSize", "perNodeExclusions",
		"perNodeNetworkPrefix", "routes", "staticAllocations", "subnet",
	} {
		delete(got, theirs)
	}
	if ours := slices.Sorted(maps.Keys(got)); !slices.Equal(ours, optionalFields) {
		t.Errorf("fields that nv-ipam does not have: %q, known are %q", ours, optionalFields)
	}
}

// A field that was applied and dropped is named, also in the objects of the cache.
func TestDroppedFieldIsNamed(t *testing.T) {
	for _, field := range optionalFields {
		applied, err := json.Marshal(map[string]any{"spec": map[string]any{"subnet": "10.0.0.0/24", field: []string{"x"}}})
		if err != nil {
			t.Fatal(err)
		}
		p := &v1alpha1.IPPool{Spec: v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24"}}
		p.Annotations = map[string]string{corev1.LastAppliedConfigAnnotation: string(applied)}
		cached, err := thin(p)
		if err != nil {
			t.Fatal(err)
		}
		got := dropped(pool.ObjectOf(cached.(metav1.Object)))
		if len(got) != 1 || !strings.Contains(got[0].condition.Message, "does not have spec."+field+":") {
			t.Errorf("%s: %+v", field, got)
		}
	}
}
