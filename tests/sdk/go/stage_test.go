package sdk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	dapr "github.com/dapr/go-sdk/client"
)

// Reached only when something is broken.
const deadline = 60 * time.Second

// A sidecar that ../stage.py has started.
type sidecar struct {
	AppID string `json:"appId"`
	HTTP  int    `json:"http"`
	GRPC  int    `json:"grpc"`
}

// How to start a sidecar.
type start struct {
	AppID string            `json:"appId"`
	Flags []string          `json:"flags,omitempty"`
	Env   map[string]string `json:"env,omitempty"`
	Wait  bool              `json:"wait"`
}

// What the tests play on: an HTTP app and a gRPC app in this process and a tester, each with a sidecar of its own.
var (
	httpApp, grpcApp *app
	tester           sidecar
	client           dapr.Client
)

func TestMain(m *testing.M) {
	dapr.SetLogger(log.New(io.Discard, "", 0))
	if err := setUp(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	status := m.Run()
	client.Close()
	os.Exit(status)
}

func setUp() error {
	var err error
	if httpApp, err = newHTTPApp(); err != nil {
		return err
	}
	if grpcApp, err = newGRPCApp(); err != nil {
		return err
	}
	if _, err = run(start{AppID: "http-app", Flags: []string{"--app-port", httpApp.port}}); err != nil {
		return err
	}
	grpcFlags := []string{"--app-port", grpcApp.port, "--app-protocol", "grpc"}
	if _, err = run(start{AppID: "grpc-app", Flags: grpcFlags}); err != nil {
		return err
	}
	if tester, err = run(start{AppID: "tester", Wait: true}); err != nil {
		return err
	}
	for _, id := range []string{"http-app", "grpc-app"} {
		if err := ask("/ready", sidecar{AppID: id}, nil); err != nil {
			return err
		}
	}
	client, err = dapr.NewClientWithAddress(fmt.Sprintf("127.0.0.1:%d", tester.GRPC))
	return err
}

// Posts to the stage.
func ask(path string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	address := os.Getenv("MECHA_SDK_STAGE")
	if address == "" {
		return errors.New("MECHA_SDK_STAGE is not set: run these tests with tests/sdk/run.sh")
	}
	response, err := http.Post(address+path, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, text)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}

func run(request start) (sidecar, error) {
	var started sidecar
	err := ask("/sidecars", request, &started)
	return started, err
}

// Starts a sidecar of the test's own.
func mustRun(t *testing.T, request start) sidecar {
	t.Helper()
	request.Wait = true
	var started sidecar
	must(t, ask("/sidecars", request, &started))
	return started
}

// Waits for the end of a sidecar; returns its status.
func ended(t *testing.T, path, appID string) int {
	t.Helper()
	var end struct {
		Status int `json:"status"`
	}
	must(t, ask(path, sidecar{AppID: appID}, &end))
	return end.Status
}

func connect(t *testing.T, to sidecar) dapr.Client {
	t.Helper()
	client, err := dapr.NewClientWithAddress(fmt.Sprintf("127.0.0.1:%d", to.GRPC))
	must(t, err)
	t.Cleanup(client.Close)
	return client
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Asks until the answer is yes.
func until(t *testing.T, what string, ask func() bool) {
	t.Helper()
	end := time.Now().Add(deadline)
	for !ask() {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, deadline)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

// A port that nobody listens on.
func freePort() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	return port, err
}

// What an app has received.
type app struct {
	id, port string
	mutex    sync.Mutex
	events   map[string][]event
	ticks    int
}

type event struct {
	ID, Type, Source, ContentType, PubSub, Topic string
	Data                                         []byte
}

// Keeps an event; returns how often one with this data has been seen in this box.
func (a *app) keep(box string, e event) int {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.events[box] = append(a.events[box], e)
	seen := 0
	for _, other := range a.events[box] {
		if bytes.Equal(other.Data, e.Data) {
			seen++
		}
	}
	return seen
}

func (a *app) tick() {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.ticks++
}

func (a *app) ticked() int {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	return a.ticks
}

// Waits until the app has received an event with this text in its data that often; returns the last of them.
func (a *app) received(t *testing.T, box, text string, times int) event {
	t.Helper()
	var last event
	until(t, fmt.Sprintf("%s has %s %s", a.id, box, text), func() bool {
		a.mutex.Lock()
		defer a.mutex.Unlock()
		seen := 0
		for _, e := range a.events[box] {
			if bytes.Contains(e.Data, []byte(text)) {
				seen++
				last = e
			}
		}
		return seen >= times
	})
	return last
}

// What backend.json says of the backend under test.
type backend struct {
	Components map[string]string `json:"components"`
	Write      setting           `json:"write"`
	Read       setting           `json:"read"`
}

// A call of the binding of a server that holds configuration.
type setting struct {
	Operation string            `json:"operation"`
	Data      string            `json:"data"`
	Metadata  map[string]string `json:"metadata"`
	Answer    string            `json:"answer"`
}

func backendName() string {
	if name := os.Getenv("MECHA_SDK_BACKEND"); name != "" {
		return name
	}
	return "embedded"
}

func theBackend(t *testing.T) backend {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "resources", backendName(), "backend.json"))
	must(t, err)
	var read backend
	must(t, json.Unmarshal(text, &read))
	return read
}

// For scenarios that need a server.
func needsServers(t *testing.T) {
	t.Helper()
	if backendName() == "embedded" {
		t.Skip("nothing embedded can do this")
	}
}

// For scenarios about what no embedded component can do.
func needsEmbedded(t *testing.T) {
	t.Helper()
	if backendName() != "embedded" {
		t.Skip("there are servers for this")
	}
}

// Returns the answer, and what it has to be.
func (s setting) invoke(t *testing.T, key, value, version string) (string, string) {
	t.Helper()
	fill := strings.NewReplacer("{key}", key, "{value}", value, "{version}", version).Replace
	request := &dapr.InvokeBindingRequest{
		Name: "settings", Operation: s.Operation, Data: []byte(fill(s.Data)), Metadata: map[string]string{},
	}
	for name, text := range s.Metadata {
		request.Metadata[name] = fill(text)
	}
	answer, err := client.InvokeBinding(testContext(t), request)
	must(t, err)
	return string(answer.Data), fill(s.Answer)
}

func writeSetting(t *testing.T, key, value, version string) {
	t.Helper()
	theBackend(t).Write.invoke(t, key, value, version)
}
