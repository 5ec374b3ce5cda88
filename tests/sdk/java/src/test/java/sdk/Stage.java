package sdk;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import io.dapr.client.DaprClient;
import io.dapr.client.DaprClientBuilder;
import io.dapr.client.DaprPreviewClient;
import io.dapr.config.Properties;
import io.dapr.exceptions.DaprErrorDetails.ErrorDetailType;
import io.dapr.exceptions.DaprException;
import io.dapr.utils.TypeRef;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.BooleanSupplier;
import java.util.function.UnaryOperator;
import reactor.core.publisher.Mono;

/**
 * What the tests play on: an HTTP app and a gRPC app in this process and a tester, each with a sidecar of its own that
 * ../stage.py has started.
 */
final class Stage {
  /** Reached only when something is broken. */
  static final Duration DEADLINE = Duration.ofSeconds(60);

  static final ObjectMapper JSON = new ObjectMapper();

  /** What stands behind the components: a folder of the resources. */
  static final String BACKEND = System.getenv().getOrDefault("MECHA_SDK_BACKEND", "embedded");

  private static final HttpClient HTTP = HttpClient.newHttpClient();
  private static Stage stage;
  private static Exception broken;

  final App httpApp;
  final App grpcApp;
  final Sidecar tester;
  final DaprClient dapr;
  final DaprPreviewClient preview;

  /** A running sidecar. */
  record Sidecar(String appId, int http, int grpc) {
    DaprClientBuilder builder() {
      return new DaprClientBuilder()
          .withPropertyOverride(Properties.HTTP_ENDPOINT, "http://127.0.0.1:" + http)
          .withPropertyOverride(Properties.GRPC_ENDPOINT, "127.0.0.1:" + grpc)
          .withPropertyOverride(Properties.HTTP_PORT, String.valueOf(http))
          .withPropertyOverride(Properties.GRPC_PORT, String.valueOf(grpc));
    }
  }

  private Stage() throws Exception {
    httpApp = App.overHttp();
    grpcApp = App.overGrpc();
    start("http-app", List.of("--app-port", String.valueOf(httpApp.port)), Map.of(), false);
    start("grpc-app", List.of("--app-port", String.valueOf(grpcApp.port), "--app-protocol", "grpc"), Map.of(), false);
    tester = run("tester", Map.of());
    ask("/ready", Map.of("appId", "http-app"));
    ask("/ready", Map.of("appId", "grpc-app"));
    dapr = tester.builder().build();
    preview = tester.builder().buildPreviewClient();
  }

  static synchronized Stage open() throws Exception {
    if (broken != null) {
      // A second one would share app ids, and so events, with what is left of the first.
      throw new IllegalStateException("the stage could not be set", broken);
    }
    if (stage == null) {
      try {
        stage = new Stage();
      } catch (Exception e) {
        broken = e;
        throw e;
      }
    }
    return stage;
  }

  /** Starts a sidecar without an app and waits until it is ready. */
  static Sidecar run(String appId, Map<String, String> env) throws Exception {
    return start(appId, List.of(), env, true);
  }

  private static Sidecar start(String appId, List<String> flags, Map<String, String> env, boolean wait)
      throws Exception {
    JsonNode started = ask("/sidecars", Map.of("appId", appId, "flags", flags, "env", env, "wait", wait));
    return new Sidecar(appId, started.get("http").asInt(), started.get("grpc").asInt());
  }

  /** Posts to ../stage.py. */
  static JsonNode ask(String path, Map<String, ?> request) throws Exception {
    String address = System.getenv("MECHA_SDK_STAGE");
    if (address == null) {
      throw new IOException("MECHA_SDK_STAGE is not set: run these tests with tests/sdk/run.sh");
    }
    var body = HttpRequest.BodyPublishers.ofByteArray(JSON.writeValueAsBytes(request));
    var answer = HTTP.send(
        HttpRequest.newBuilder(URI.create(address + path)).POST(body).build(), HttpResponse.BodyHandlers.ofString());
    if (answer.statusCode() != 200) {
      throw new IOException(path + ": " + answer.body());
    }
    return JSON.readTree(answer.body());
  }

  /** What backend.json says of the backend under test. */
  static JsonNode backend() throws IOException {
    return JSON.readTree(Files.readAllBytes(Path.of("..", "resources", BACKEND, "backend.json")));
  }

  /** Writes or reads configuration through the binding of its server; checks the answer if one is named. */
  void setting(String what, String key, String value, String version) throws IOException {
    UnaryOperator<String> fill =
        text -> text.replace("{key}", key).replace("{value}", value).replace("{version}", version);
    JsonNode call = backend().get(what);
    Map<String, String> metadata = new HashMap<>();
    call.get("metadata").fields().forEachRemaining(f -> metadata.put(f.getKey(), fill.apply(f.getValue().asText())));
    byte[] data = fill.apply(call.path("data").asText()).getBytes();
    byte[] answer = get(dapr.invokeBinding("settings", call.get("operation").asText(), data, metadata));
    if (call.has("answer")) {
      assertEquals(fill.apply(call.get("answer").asText()), new String(answer));
    }
  }

  /** Waits for an answer. */
  static <T> T get(Mono<T> call) {
    return call.block(DEADLINE);
  }

  /** Asks until the answer is yes. */
  static void until(String what, BooleanSupplier ask) throws InterruptedException {
    long end = System.nanoTime() + DEADLINE.toNanos();
    while (!ask.getAsBoolean()) {
      assertTrue(System.nanoTime() < end, what + ": not within " + DEADLINE);
      Thread.sleep(10);
    }
  }

  /** Checks that a call fails with this code and message. */
  static DaprException fails(Mono<?> call, String code, String message) {
    DaprException error = assertThrows(DaprException.class, () -> get(call));
    assertEquals(code, error.getErrorCode(), error.getMessage());
    assertTrue(error.getMessage().contains(message), error.getMessage());
    return error;
  }

  /** The reason in the details of an error. */
  static String reason(DaprException error) {
    return error.getErrorDetails().get(ErrorDetailType.ERROR_INFO, "reason", TypeRef.STRING);
  }
}
