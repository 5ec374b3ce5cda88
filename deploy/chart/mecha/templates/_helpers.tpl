{{/* The image called `name`, with registry and tag. */}}
{{- define "mecha.image" -}}
{{- $images := .root.Values.images -}}
{{- $registry := $images.registry | trimSuffix "/" -}}
{{- if $registry }}{{ $registry }}/{{ end }}{{ .name }}:{{ $images.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* What every object carries. */}}
{{- define "mecha.labels" -}}
app.kubernetes.io/part-of: mecha
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{/* The namespace of this cluster's bindings, which ends what its agent may read of them. */}}
{{- define "mecha.home" -}}
mecha-cluster-{{ .Values.cluster }}
{{- end }}

{{/* What picks the pods of the role `role`. */}}
{{- define "mecha.selector" -}}
app.kubernetes.io/name: mecha-{{ .role }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{/* Account, budget and Deployment of the role `role` with its own `args` and `ports`. */}}
{{- define "mecha.role" -}}
{{- $root := .root -}}
{{- $values := index $root.Values .role -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: mecha-{{ .role }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "mecha.labels" $root | nindent 4 }}
{{- with $root.Values.images.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: mecha-{{ .role }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "mecha.labels" $root | nindent 4 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "mecha.selector" . | nindent 6 }}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: mecha-{{ .role }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "mecha.labels" $root | nindent 4 }}
    {{- include "mecha.selector" . | nindent 4 }}
spec:
  replicas: {{ $values.replicas }}
  revisionHistoryLimit: 3
  strategy:
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
  selector:
    matchLabels: {{- include "mecha.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "mecha.labels" $root | nindent 8 }}
        {{- include "mecha.selector" . | nindent 8 }}
      annotations:
        kubectl.kubernetes.io/default-container: {{ .role }}
        {{- with $root.Values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: mecha-{{ .role }}
      # Longer than the drain, and than what others need to notice that this replica goes.
      terminationGracePeriodSeconds: 30
      enableServiceLinks: false
      securityContext:
        runAsNonRoot: true
        runAsUser: 65532
        runAsGroup: 65532
        seccompProfile: {type: RuntimeDefault}
      {{- with $root.Values.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $root.Values.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $root.Values.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      topologySpreadConstraints:
      {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
      - maxSkew: 1
        topologyKey: {{ $key }}
        whenUnsatisfiable: ScheduleAnyway
        labelSelector:
          matchLabels: {{- include "mecha.selector" $ | nindent 12 }}
      {{- end }}
      containers:
      - name: {{ .role }}
        image: {{ include "mecha.image" (dict "root" $root "name" $root.Values.images.control) }}
        imagePullPolicy: {{ $root.Values.images.pullPolicy }}
        args:
        - {{ .role }}
        - --log-level={{ $root.Values.logs.level }}
        {{- if $root.Values.logs.json }}
        - --log-as-json
        {{- end }}
        {{- with $root.Values.traces.endpoint }}
        - --trace-endpoint={{ . }}
        - --trace-protocol={{ $root.Values.traces.protocol }}
        - --trace-share={{ $root.Values.traces.share }}
        {{- end }}
        {{- range .args }}
        - {{ . }}
        {{- end }}
        env:
        - name: POD_NAME
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        - name: POD_NAMESPACE
          valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
        {{- with $root.Values.traces.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        ports:
        {{- range $name, $port := .ports }}
        - {name: {{ $name }}, containerPort: {{ $port }}, protocol: TCP}
        {{- end }}
        - {name: ops, containerPort: 9090, protocol: TCP}
        startupProbe:
          httpGet: {path: /healthz, port: ops}
          periodSeconds: 1
          failureThreshold: 60
        livenessProbe:
          httpGet: {path: /healthz, port: ops}
          periodSeconds: 10
          timeoutSeconds: 3
        readinessProbe:
          httpGet: {path: /readyz, port: ops}
          periodSeconds: 2
          timeoutSeconds: 2
        resources: {{- toYaml $values.resources | nindent 10 }}
        securityContext:
          allowPrivilegeEscalation: false
          readOnlyRootFilesystem: true
          capabilities: {drop: [ALL]}
{{- end }}

{{/* A Service called `name` for port `port` of the role `role`. */}}
{{- define "mecha.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "mecha.labels" .root | nindent 4 }}
spec:
  type: ClusterIP
  selector: {{- include "mecha.selector" . | nindent 4 }}
  ports:
  - {name: {{ .port }}, port: 443, targetPort: {{ .port }}, protocol: TCP}
{{- end }}

{{/* Whether a pod, given as a CEL expression, asks for a sidecar or says something unclear about it. */}}
{{- define "mecha.asks" -}}
{{- $ours := printf "%s.?metadata.?annotations[?'mecha.dev/enabled'].orValue('').trim().lowerAscii()" . -}}
{{- $daprs := $ours | replace "mecha.dev" "dapr.io" -}}
!(({{ $ours }} != '' ? {{ $ours }} : {{ $daprs }}) in ['', 'n', 'no', 'false', 'f', 'off', '0'])
{{- end }}
