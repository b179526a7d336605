// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// network-operator runs those controllers of NVIDIA's network-operator that make a
// NetworkAttachmentDefinition out of a MacvlanNetwork, a HostDeviceNetwork or an
// IPoIBNetwork. Its templates are in STATE_MANIFEST_BASE_DIR, the API server in KUBECONFIG.
package main

import (
	"fmt"
	"os"

	"github.com/Mellanox/network-operator/api/v1alpha1"
	"github.com/Mellanox/network-operator/controllers"
	netattdefv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	ctrl.SetLogger(zap.New())
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme, netattdefv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return err
		}
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(config, ctrl.Options{Scheme: scheme, MetricsBindAddress: "0"})
	if err != nil {
		return err
	}
	for _, reconciler := range []interface{ SetupWithManager(ctrl.Manager) error }{
		&controllers.MacvlanNetworkReconciler{Client: mgr.GetClient(), Log: ctrl.Log, Scheme: scheme},
		&controllers.HostDeviceNetworkReconciler{Client: mgr.GetClient(), Log: ctrl.Log, Scheme: scheme},
		&controllers.IPoIBNetworkReconciler{Client: mgr.GetClient(), Log: ctrl.Log, Scheme: scheme},
	} {
		if err := reconciler.SetupWithManager(mgr); err != nil {
			return err
		}
	}
	return mgr.Start(ctrl.SetupSignalHandler())
}
