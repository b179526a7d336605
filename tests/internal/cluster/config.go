// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"path/filepath"
	"strings"
)

// controlPlaneServices are what runs on the control plane.
func (c *Cluster) controlPlaneServices() ([]service, error) {
	flags := map[string]string{
		"etcd": "--data-dir=" + c.path("control-plane/etcd") + " --unsafe-no-fsync" +
			" --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379" +
			" --listen-peer-urls=http://127.0.0.1:2380",
		"kube-apiserver": "--etcd-servers=http://127.0.0.1:2379" +
			" --secure-port=443 --advertise-address=" + controlIP + " --service-cluster-ip-range=" + serviceCIDR +
			" --tls-cert-file=" + c.path("pki/apiserver.crt") + " --tls-private-key-file=" + c.path("pki/apiserver.key") +
			" --client-ca-file=" + c.path("pki/ca.crt") +
			" --kubelet-client-certificate=" + c.path("pki/kubelet-client.crt") +
			" --kubelet-client-key=" + c.path("pki/kubelet-client.key") + " --kubelet-preferred-address-types=InternalIP" +
			" --service-account-issuer=https://kubernetes.default.svc" +
			" --service-account-key-file=" + c.path("pki/service-account.crt") +
			" --service-account-signing-key-file=" + c.path("pki/service-account.key") +
			" --allow-privileged=true --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction",
		// A node that is away is noticed after 20 s instead of 50, to save tests
		// time; kubelets say that they are alive as much more often.
		"kube-controller-manager": "--kubeconfig=" + c.Kubeconfig() +
			" --root-ca-file=" + c.path("pki/ca.crt") +
			" --service-account-private-key-file=" + c.path("pki/service-account.key") +
			" --leader-elect=false --node-monitor-period=2s --node-monitor-grace-period=20s",
		"kube-scheduler": "--kubeconfig=" + c.Kubeconfig() + " --leader-elect=false",
		// Until its CRDs are there it ends, and is started again.
		"network-operator": "",
	}
	services := []service{{Name: "registry", Args: []string{self, registryName, c.path("registry")}}}
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "network-operator"} {
		path, err := c.program(name)
		if err != nil {
			return nil, err
		}
		s := service{Name: name, Args: append([]string{path}, strings.Fields(flags[name])...)}
		if name == "network-operator" {
			s.Env = []string{"KUBECONFIG=" + c.Kubeconfig(), "STATE_MANIFEST_BASE_DIR=" + filepath.Join(filepath.Dir(path), "manifests")}
		}
		services = append(services, s)
	}
	return services, nil
}

// newContainerdConfig is for containerd 2, oldContainerdConfig for the one before.
func newContainerdConfig(runc string) string {
	return fmt.Sprintf(`version = 3

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = %q

[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "/etc/containerd/certs.d"

[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/opt/cni/bin"]
conf_dir = "/etc/cni/net.d"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = %q
SystemdCgroup = false
`, PauseImage, runc)
}

func oldContainerdConfig(runc string) string {
	return fmt.Sprintf(`version = 2

[plugins.'io.containerd.grpc.v1.cri']
sandbox_image = %q
restrict_oom_score_adj = true

[plugins.'io.containerd.grpc.v1.cri'.registry]
config_path = "/etc/containerd/certs.d"

[plugins.'io.containerd.grpc.v1.cri'.cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"

[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]
BinaryName = %q
SystemdCgroup = false
`, PauseImage, runc)
}

// kubeletConfig is for a node that shares a machine, whose disk may be nearly
// full, whose swap may be on and whose cgroups may be of version 1.
func kubeletConfig(node string) string {
	return `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous:
    enabled: false
  x509:
    clientCAFile: /etc/kubernetes/pki/ca.crt
cgroupDriver: cgroupfs
cgroupRoot: ` + cgroupOf(node) + `
clusterDNS: [10.96.0.10]
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
evictionHard:
  imagefs.available: 0%
  memory.available: 1Mi
  nodefs.available: 0%
  nodefs.inodesFree: 0%
failCgroupV1: false
failSwapOn: false
imageGCHighThresholdPercent: 100
makeIPTablesUtilChains: false
nodeLeaseDurationSeconds: 12
nodeStatusUpdateFrequency: 4s
resolvConf: ""
`
}

// clusterNetwork is that of a node as kindnet configures it.
func clusterNetwork(pods string) string {
	return `{
    "cniVersion": "0.3.1",
    "name": "kindnet",
    "type": "ptp",
    "ipMasq": false,
    "ipam": {
      "type": "host-local",
      "dataDir": "/run/cni-ipam-state",
      "ranges": [[{"subnet": "` + pods + `"}]],
      "routes": [{"dst": "0.0.0.0/0"}]
    }
  }`
}

// multusConfig is of the thin multus; the thick one writes its own.
func multusConfig(pods string) string {
	return `{
  "cniVersion": "0.3.1",
  "name": "multus-cni-network",
  "type": "multus",
  "kubeconfig": "/etc/cni/net.d/multus.d/multus.kubeconfig",
  "logFile": "/var/log/multus.log",
  "logLevel": "verbose",
  "delegates": [` + clusterNetwork(pods) + `]
}
`
}

// multusRBAC is what the thin multus needs, as user multus.
const multusRBAC = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: multus
rules:
- apiGroups: [k8s.cni.cncf.io]
  resources: ["*"]
  verbs: ["*"]
- apiGroups: [""]
  resources: [pods, pods/status]
  verbs: [get, list, watch, update, patch]
- apiGroups: ["", events.k8s.io]
  resources: [events]
  verbs: [create, patch, update]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: multus
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: multus
subjects:
- apiGroup: rbac.authorization.k8s.io
  kind: User
  name: multus
`
