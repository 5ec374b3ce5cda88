package sdk;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static sdk.Stage.fails;
import static sdk.Stage.get;

import io.dapr.client.DaprClient;
import io.dapr.client.domain.ComponentMetadata;
import io.dapr.config.Properties;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

class RuntimeTest {
  /** Every client of the SDK is asynchronous, and none sets metadata. */
  private static final Set<String> NOT_IN_SDK = Set.of("async_client", "metadata_set");

  /** Played in addition to the table. */
  private static final Set<String> MORE = Set.of("every_scenario_is_played", "subscribe_stream_as_flux");

  private static Stage stage;
  private static DaprClient dapr;

  @BeforeAll
  static void open() throws Exception {
    stage = Stage.open();
    dapr = stage.dapr;
  }

  @Test
  void secretGet() {
    assertEquals(Map.of("plain", "of no worth"), get(dapr.getSecret("secrets", "plain")));
    assertEquals(Map.of("database:user", "reader"), get(dapr.getSecret("secrets", "database:user")));
  }

  @Test
  void secretBulk() {
    assertEquals(
        Map.of(
            "plain", Map.of("plain", "of no worth"),
            "database:user", Map.of("database:user", "reader"),
            "database:password", Map.of("database:password", "of no worth either")),
        get(dapr.getBulkSecret("secrets")));
  }

  @Test
  void secretMissing() {
    var error = fails(dapr.getSecret("secrets", "nothing"), "INTERNAL",
        "failed getting secret with key nothing from secret store secrets");
    assertFalse(error.getMessage().contains("of no worth"));
  }

  @Test
  void secretUnknownStore() {
    fails(dapr.getSecret("nowhere", "plain"), "INVALID_ARGUMENT", "failed finding secret store with key nowhere");
  }

  @Test
  void metadataGet() throws Exception {
    var metadata = get(dapr.getMetadata());
    assertEquals("tester", metadata.getId());
    assertFalse(metadata.getRuntimeVersion().isEmpty());
    assertEquals(
        Stage.JSON.convertValue(Stage.backend().get("components"), Map.class),
        metadata.getComponents().stream()
            .collect(Collectors.toMap(ComponentMetadata::getName, ComponentMetadata::getType)));
  }

  @Test
  void apiToken() throws Exception {
    String token = "a token of the test";
    var guarded = Stage.run("guarded", Map.of("DAPR_API_TOKEN", token));
    try (DaprClient stranger = guarded.builder().build()) {
      fails(stranger.getMetadata(), "UNAUTHENTICATED", "");
    }
    try (DaprClient friend = guarded.builder().withPropertyOverride(Properties.API_TOKEN, token).build()) {
      assertEquals("guarded", get(friend.getMetadata()).getId());
    }
  }

  @Test
  void health() {
    get(dapr.waitForSidecar(10_000));
  }

  @Test
  @Tag("embedded")
  void lockNotConfigured() {
    fails(stage.preview.tryLock("lockstore", "resource", "owner", 10), "FAILED_PRECONDITION",
        "lock store is not configured");
  }

  @Test
  @Tag("embedded")
  void configurationNotConfigured() {
    fails(dapr.getConfiguration("configstore", "key"), "FAILED_PRECONDITION",
        "configuration stores not configured");
  }

  @Test
  void shutdown() throws Exception {
    try (DaprClient leaver = Stage.run("leaver", Map.of()).builder().build()) {
      get(leaver.shutdown());
    }
    assertEquals(0, Stage.ask("/ended", Map.of("appId", "leaver")).get("status").asInt());
  }

  @Test
  void everyScenarioIsPlayed() throws Exception {
    Set<String> played = Stream.of(StateTest.class, PubSubTest.class, CallsTest.class, RuntimeTest.class, ServersTest.class)
        .flatMap(type -> Arrays.stream(type.getDeclaredMethods()))
        .filter(method -> method.isAnnotationPresent(Test.class))
        .map(method -> method.getName().replaceAll("([A-Z])", "_$1").toLowerCase())
        .filter(name -> !MORE.contains(name))
        .collect(Collectors.toCollection(TreeSet::new));
    Set<String> wanted = new TreeSet<>();
    Stage.JSON.readTree(Files.readAllBytes(Path.of("..", "scenarios.json")))
        .forEach(part -> part.fieldNames().forEachRemaining(wanted::add));
    wanted.removeAll(NOT_IN_SDK);
    assertEquals(wanted, played);
  }
}
