// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package reclaim

import (
	"maps"
	"strings"
	"testing"
	"unsafe"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// A value that is too long to be a UID is cut, and is none after that either; what was cut off
// does not stay in memory.
func TestAnnotations(t *testing.T) {
	uid := strings.Repeat("u", 64)
	for value, want := range map[string]string{
		"":                              "",
		uid:                             uid,
		uid + "u":                       uid + "u",
		uid + strings.Repeat("v", 1000): uid + "v",
		uid + "\u20ac":                  uid + "?",
		uid[:63] + "\u20ac":             uid[:63] + "?",
	} {
		in := map[string]string{"other": "x", AnnotationConfigHash: value, v1alpha1.AnnotationReclaim: "disabled"}
		got := Annotations(in)
		if !maps.Equal(got, map[string]string{AnnotationConfigHash: want, v1alpha1.AnnotationReclaim: "disabled"}) {
			t.Errorf("%q: got %q", value, got)
		}
		if cut := got[AnnotationConfigHash]; cut != value && unsafe.StringData(cut) == unsafe.StringData(value) {
			t.Errorf("%q: the cut value keeps the whole", value)
		}
	}
	if got := Annotations(map[string]string{"other": "x"}); got != nil {
		t.Errorf("got %q", got)
	}
}
