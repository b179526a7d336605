// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package web serves a page that shows what pkg/inspect knows, to the user who started it
// and to nobody else.
//
//	Listen   opens a port on loopback, and refuses any other address
//	New      makes the handler: guard.go says whom it answers, answers.go what
//	Serve    serves until the context ends
//
// The page is in page/, without a framework, and loads nothing from elsewhere. It only
// reads: there is no request that changes anything.
package web
