package sdk;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static sdk.Stage.fails;
import static sdk.Stage.get;
import static sdk.Stage.until;

import com.fasterxml.jackson.databind.JsonNode;
import com.google.protobuf.Int64Value;
import com.google.protobuf.StringValue;
import io.dapr.client.DaprClient;
import io.dapr.client.DaprHttp.HttpMethods;
import io.dapr.client.domain.HttpExtension;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.AbstractBlockingStub;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

class CallsTest {
  private static Stage stage;
  private static DaprClient dapr;

  /** A stub as protoc makes it. */
  private static final class Greeter extends AbstractBlockingStub<Greeter> {
    Greeter(Channel channel, CallOptions options) {
      super(channel, options);
    }

    @Override
    protected Greeter build(Channel channel, CallOptions options) {
      return new Greeter(channel, options);
    }

    String greet(String name) {
      return ClientCalls.blockingUnaryCall(getChannel(), App.GREET, getCallOptions(), StringValue.of(name)).getValue();
    }

    Iterator<Int64Value> count(long limit) {
      return ClientCalls.blockingServerStreamingCall(getChannel(), App.COUNT, getCallOptions(), Int64Value.of(limit));
    }
  }

  @BeforeAll
  static void open() throws Exception {
    stage = Stage.open();
    dapr = stage.dapr;
  }

  private static JsonNode echo(String appId) {
    var extension =
        new HttpExtension(HttpMethods.POST, Map.of("a", List.of("1", "two words")), Map.of("x-mine", "yes"));
    JsonNode answer = get(dapr.invokeMethod(appId, "echo", Map.of("n", 1), extension, JsonNode.class));
    assertEquals(appId, answer.get("app").asText());
    assertEquals("{\"n\":1}", answer.get("body").asText());
    assertEquals("POST", answer.get("verb").asText());
    assertTrue(List.of("a=1&a=two+words", "a=1&a=two%20words").contains(answer.get("query").asText()),
        answer.get("query").asText());
    return answer;
  }

  @Test
  void invokeHttpApp() {
    JsonNode answer = echo("http-app");
    assertEquals("tester", answer.get("caller").asText());
    assertEquals("yes", answer.get("header").asText());
    assertEquals("GET", get(dapr.invokeMethod("http-app", "echo", HttpExtension.GET, Map.of(), JsonNode.class))
        .get("verb").asText());
  }

  @Test
  void invokeGrpcApp() {
    echo("grpc-app");
  }

  @Test
  void invokeErrorOfApp() {
    var error = fails(dapr.invokeMethod("http-app", "fail", "x", HttpExtension.POST, String.class), "UNKNOWN", "");
    assertEquals(409, error.getHttpStatusCode());
    assertEquals("{\"reason\": \"sold out\"}", new String(error.getPayload()));
    error = fails(dapr.invokeMethod("grpc-app", "broken", "x", HttpExtension.POST, String.class), "ABORTED",
        "broken by intent");
    assertEquals(409, error.getHttpStatusCode());
  }

  @Test
  void invokeUnknownApp() {
    var error = fails(dapr.invokeMethod("nobody", "echo", "x", HttpExtension.POST, String.class),
        "ERR_DIRECT_INVOKE", "nobody");
    assertEquals(500, error.getHttpStatusCode());
  }

  @Test
  void invokeByProxy() {
    Greeter greeter = dapr.newGrpcStub("grpc-app", channel -> new Greeter(channel, CallOptions.DEFAULT));
    assertEquals("hello world", greeter.greet("world"));
    var error = assertThrows(StatusRuntimeException.class, () -> greeter.greet("nobody"));
    assertEquals(Status.Code.NOT_FOUND, error.getStatus().getCode());
    assertEquals("nobody is here", error.getStatus().getDescription());
    Metadata headers = new Metadata();
    headers.put(Metadata.Key.of("dapr-stream", Metadata.ASCII_STRING_MARSHALLER), "true");
    var numbers = greeter.withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers)).count(1000);
    for (long n = 0; n < 1000; n++) {
      assertEquals(n, numbers.next().getValue());
    }
    assertEquals(false, numbers.hasNext());
  }

  @Test
  void bindingOutput() throws Exception {
    String name = UUID.randomUUID() + ".txt";
    Map<String, String> file = Map.of("fileName", name);
    get(dapr.invokeBinding("files", "create", "a text".getBytes(), file));
    assertEquals("a text", new String(get(dapr.invokeBinding("files", "get", new byte[0], file))));
    List<?> names = get(dapr.invokeBinding("files", "list", "", List.class));
    assertTrue(names.contains(name), names.toString());
    get(dapr.invokeBinding("files", "delete", new byte[0], file));
    fails(dapr.invokeBinding("files", "get", new byte[0], file), "INTERNAL", "error invoking output binding files");
  }

  @Test
  void bindingInputHttpApp() throws Exception {
    ticksGoOn(stage.httpApp);
  }

  @Test
  void bindingInputGrpcApp() throws Exception {
    ticksGoOn(stage.grpcApp);
  }

  private static void ticksGoOn(App app) throws Exception {
    int first = app.ticks.get();
    until(app.id + " gets ticks", () -> app.ticks.get() > first);
  }

  @Test
  void bindingUnknown() {
    var error = fails(dapr.invokeBinding("nowhere", "create", "x"), "INTERNAL",
        "couldn't find output binding nowhere");
    assertEquals("ERR_INVOKE_OUTPUT_BINDING", Stage.reason(error));
  }

  @Test
  void bindingUnknownOperation() {
    var error = fails(dapr.invokeBinding("files", "paint", "x"), "INVALID_ARGUMENT",
        "binding files does not support operation paint");
    assertTrue(error.getMessage().contains("create"), error.getMessage());
  }
}
