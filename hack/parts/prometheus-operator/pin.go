// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package pin imports the smallest package of prometheus-operator, so that go.mod pins
// the module: its CRDs are wanted, and nothing of it is built.
package pin

import _ "github.com/prometheus-operator/prometheus-operator/pkg/versionutil"
