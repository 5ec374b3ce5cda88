package sdk

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dapr "github.com/dapr/go-sdk/client"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What the SDK has no call for.
var notInSDK = []string{
	"async_client", // every client is
}

// Checks code and message of an error.
func failed(t *testing.T, err error, code codes.Code, message string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(err.Error(), message) {
		t.Fatalf("got %v, want %s with %q", err, code, message)
	}
}

// The reason in the details of an error.
func reason(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.Reason
		}
	}
	return ""
}

func TestSecretGet(t *testing.T) {
	for key, want := range map[string]string{"plain": "of no worth", "database:user": "reader"} {
		got, err := client.GetSecret(testContext(t), "secrets", key, nil)
		must(t, err)
		equal(t, "secret", maps.Equal(got, map[string]string{key: want}), true)
	}
}

func TestSecretBulk(t *testing.T) {
	got, err := client.GetBulkSecret(testContext(t), "secrets", nil)
	must(t, err)
	want := map[string]map[string]string{
		"plain":             {"plain": "of no worth"},
		"database:user":     {"database:user": "reader"},
		"database:password": {"database:password": "of no worth either"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got %v", got)
	}
}

func TestSecretMissing(t *testing.T) {
	_, err := client.GetSecret(testContext(t), "secrets", "nothing", nil)
	failed(t, err, codes.Internal, "failed getting secret with key nothing from secret store secrets")
	equal(t, "shows no secret", strings.Contains(err.Error(), "of no worth"), false)
}

func TestSecretUnknownStore(t *testing.T) {
	_, err := client.GetSecret(testContext(t), "nowhere", "plain", nil)
	failed(t, err, codes.InvalidArgument, "failed finding secret store with key nowhere")
}

func TestMetadataGet(t *testing.T) {
	got, err := client.GetMetadata(testContext(t))
	must(t, err)
	equal(t, "app id", got.ID, "tester")
	kinds := map[string]string{}
	for _, component := range got.RegisteredComponents {
		kinds[component.Name] = component.Type
	}
	if want := theBackend(t).Components; !maps.Equal(kinds, want) {
		t.Fatalf("got %v, want %v", kinds, want)
	}
}

func TestMetadataSet(t *testing.T) {
	must(t, client.SetMetadata(testContext(t), "colour", "green"))
	got, err := client.GetMetadata(testContext(t))
	must(t, err)
	equal(t, "colour", got.ExtendedMetadata["colour"], "green")
}

func TestApiToken(t *testing.T) {
	token := "a token of the test"
	client := connect(t, mustRun(t, start{AppID: "guarded", Env: map[string]string{"DAPR_API_TOKEN": token}}))
	_, err := client.GetMetadata(testContext(t))
	failed(t, err, codes.Unauthenticated, "")
	client.WithAuthToken(token)
	got, err := client.GetMetadata(testContext(t))
	must(t, err)
	equal(t, "app id", got.ID, "guarded")
}

func TestHealth(t *testing.T) { must(t, client.Wait(testContext(t), 10*time.Second)) }

func TestLockNotConfigured(t *testing.T) {
	needsEmbedded(t)
	request := &dapr.LockRequest{ResourceID: "resource", LockOwner: "owner", ExpiryInSeconds: 10}
	_, err := client.TryLockAlpha1(testContext(t), "lockstore", request)
	failed(t, err, codes.FailedPrecondition, "lock store is not configured")
}

func TestConfigurationNotConfigured(t *testing.T) {
	needsEmbedded(t)
	_, err := client.GetConfigurationItem(testContext(t), "configstore", "key")
	failed(t, err, codes.FailedPrecondition, "configuration stores not configured")
}

func TestShutdown(t *testing.T) {
	must(t, connect(t, mustRun(t, start{AppID: "leaver"})).Shutdown(testContext(t)))
	equal(t, "status", ended(t, "/ended", "leaver"), 0)
}

func TestEveryScenarioIsPlayed(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "scenarios.json"))
	must(t, err)
	var table map[string]map[string]string
	must(t, json.Unmarshal(text, &table))
	var wanted []string
	for _, scenarios := range table {
		wanted = slices.AppendSeq(wanted, maps.Keys(scenarios))
	}
	slices.Sort(wanted)
	played := slices.Clone(notInSDK)
	sources, err := filepath.Glob("*_test.go")
	must(t, err)
	capital := regexp.MustCompile("[A-Z]")
	for _, source := range sources {
		text, err := os.ReadFile(source)
		must(t, err)
		for _, name := range regexp.MustCompile(`(?m)^func Test(\w+)\(t `).FindAllStringSubmatch(string(text), -1) {
			snake := capital.ReplaceAllStringFunc(name[1], func(c string) string { return "_" + strings.ToLower(c) })
			if name[1] != "EveryScenarioIsPlayed" {
				played = append(played, snake[1:])
			}
		}
	}
	slices.Sort(played)
	if !slices.Equal(played, wanted) {
		t.Fatalf("played %v\nwanted %v", played, wanted)
	}
}
