// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package testenv_test

import (
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// After a restore there is what was there at the snapshot, and resource versions go
// back, unless the revision was bumped.
func TestSnapshotAndRestore(t *testing.T) {
	ns := env.Namespace(t)
	kube, err := kubernetes.NewForConfig(env.Config)
	if err != nil {
		t.Fatal(err)
	}
	maps := kube.CoreV1().ConfigMaps(ns)
	create := func(name string) int {
		t.Helper()
		cm, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		rv, err := strconv.Atoi(cm.ResourceVersion)
		if err != nil {
			t.Fatal(err)
		}
		return rv
	}
	there := func(name string) bool {
		t.Helper()
		_, err := maps.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		return err == nil
	}
	create("before")
	snapshot := env.Snapshot(t)
	env.Revise(t, 300)
	var last int
	for i := range 40 {
		last = create("lost-" + strconv.Itoa(i))
	}
	env.Restore(t, snapshot)
	if !there("before") || there("lost-0") {
		t.Errorf("before the snapshot: %t, after it: %t; want true, false", there("before"), there("lost-0"))
	}
	if rv := create("after"); rv >= last {
		t.Errorf("resource version %d, and before the restore it was %d", rv, last)
	}
	env.Restore(t, snapshot)
	env.Revise(t, 1000)
	if rv := create("after"); rv <= last {
		t.Errorf("resource version %d in spite of the bump, and before the restore it was %d", rv, last)
	}
}
