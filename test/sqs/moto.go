package sqs

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"syscall"
	"time"

	"imageroot/test/runner"
)

// A Moto is a moto_server of the Python package moto. It is safe for concurrent use.
type Moto struct {
	url    string
	cmd    *exec.Cmd
	log    runner.Buffer
	exited chan struct{}
}

// StartMoto starts a moto_server on loopback. It returns an error if moto_server is not
// installed, or does not answer before ctx ends. The caller must call Close. The server
// also ends with the calling process.
func StartMoto(ctx context.Context) (*Moto, error) {
	// A port that was free may be taken when moto_server listens.
	var err error
	for range 3 {
		var m *Moto
		if m, err = startMoto(ctx); err == nil || ctx.Err() != nil {
			return m, err
		}
	}
	return nil, err
}

func startMoto(ctx context.Context) (*Moto, error) {
	program, err := exec.LookPath("moto_server")
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	address := ln.Addr().String()
	if err := ln.Close(); err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	m := &Moto{url: "http://" + address, cmd: exec.Command(program, "-H", host, "-p", port), exited: make(chan struct{})}
	m.cmd.Stdout, m.cmd.Stderr = &m.log, &m.log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = m.cmd.Wait() // its log has the reason
		close(m.exited)
	}()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for m.Reset(ctx) != nil {
		select {
		case <-tick.C:
		case <-m.exited:
			return nil, fmt.Errorf("moto_server does not start: %s", m.log.String())
		case <-ctx.Done():
			m.Close()
			return nil, fmt.Errorf("moto_server does not answer: %w\n%s", ctx.Err(), m.log.String())
		}
	}
	return m, nil
}

// URL returns the address of the server.
func (m *Moto) URL() string { return m.url }

// Reset removes all queues.
func (m *Moto) Reset(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.url+"/moto-api/reset", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("reset moto_server: %s", resp.Status)
	}
	return nil
}

// Close kills the server.
func (m *Moto) Close() {
	select {
	case <-m.exited:
	default:
		_ = syscall.Kill(-m.cmd.Process.Pid, syscall.SIGKILL) // its process group: it may be a script
		<-m.exited
	}
}
