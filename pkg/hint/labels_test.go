// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"maps"
	"os"
	"testing"
	"time"
)

func TestLabels(t *testing.T) {
	h := newHint(t)
	if _, ok := h.Labels(time.Hour); ok {
		t.Error("labels that were never saved")
	}
	for _, want := range []map[string]string{{"rack": "r1"}, {"rack": "r2", "a.b/c": ""}, nil} {
		h.SetLabels(want)
		if got, ok := h.Labels(time.Minute); !ok || !maps.Equal(got, want) {
			t.Errorf("%v, %t, want %v", got, ok, want)
		}
	}
	if _, ok := h.Labels(0); ok {
		t.Error("a copy is never as of now")
	}
	for _, at := range []time.Duration{-2 * time.Minute, 2 * time.Minute} { // the clock may be set back
		if err := os.Chtimes(h.path("pools", labelsFile), time.Now(), time.Now().Add(at)); err != nil {
			t.Fatal(err)
		}
		if _, ok := h.Labels(time.Minute); ok {
			t.Errorf("labels of %s from now count as new", at)
		}
	}
	if err := os.WriteFile(h.path("pools", labelsFile), []byte(`{"rack"`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, ok := h.Labels(time.Minute); ok {
		t.Error("half a file is read")
	}
}
