// What Kubernetes' own HorizontalPodAutoscaler decides, for the port in crates/cli/src/simulate/hpa.rs: the whole
// controller runs, in time that the test makes.
//
// Anew after a change here, with a Go toolchain:
//
//	cd tests/scaling-vectors/hpa && go test -run TestWrite -count=1 .
//
// It writes ../hpa.json, which the test `decisions_equal_kubernetes` of flywheel-cli reads.
package hpa

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"math/rand"
	"os"
	"testing"
	"testing/synctest"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	scaleclient "k8s.io/client-go/scale"
	"k8s.io/kubernetes/pkg/controller/podautoscaler"
	"k8s.io/kubernetes/pkg/controller/podautoscaler/metrics"
)

type step struct {
	Second   float64 `json:"second"`
	Load     *int64  `json:"load"` // thousandths; null where there is no metric
	Spec     int32   `json:"spec"`
	Status   int32   `json:"status"`
	Replicas int32   `json:"replicas"` // after the decision
}

type vector struct {
	Name   string `json:"name"`
	Target int64  `json:"target"` // thousandths
	Min    int32  `json:"min"`
	Max    int32  `json:"max"`
	Steps  []step `json:"steps"`
}

// A service: it has the size that is asked for, and tells the load.
type service struct {
	began        time.Time
	spec, status int32
	load         func(second float64) (int64, bool)
	steps        []step
}

func (s *service) Scales(string) scaleclient.ScaleInterface { return s }

func (s *service) Get(context.Context, schema.GroupResource, string, metav1.GetOptions) (*autoscalingv1.Scale, error) {
	return &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "intent"},
		Spec:       autoscalingv1.ScaleSpec{Replicas: s.spec},
		Status:     autoscalingv1.ScaleStatus{Replicas: s.status, Selector: "app=intent"},
	}, nil
}

func (s *service) Update(_ context.Context, _ schema.GroupResource, scale *autoscalingv1.Scale, _ metav1.UpdateOptions) (*autoscalingv1.Scale, error) {
	s.spec = scale.Spec.Replicas
	s.steps[len(s.steps)-1].Replicas = s.spec
	return scale, nil
}

func (s *service) Patch(context.Context, schema.GroupVersionResource, string, types.PatchType, []byte, metav1.PatchOptions) (*autoscalingv1.Scale, error) {
	return nil, errors.New("not used")
}

func (s *service) GetExternalMetric(string, string, labels.Selector) ([]int64, time.Time, error) {
	second := time.Since(s.began).Seconds()
	next := step{Second: second, Spec: s.spec, Status: s.status, Replicas: s.spec}
	load, ok := s.load(second)
	if ok {
		next.Load = &load
	}
	s.steps = append(s.steps, next)
	if !ok {
		return nil, time.Time{}, errors.New("no metric")
	}
	return []int64{load}, time.Now(), nil
}

func (s *service) GetResourceMetric(context.Context, v1.ResourceName, string, labels.Selector, string) (metrics.PodMetricsInfo, time.Time, error) {
	return nil, time.Time{}, errors.New("not used")
}

func (s *service) GetRawMetric(string, string, labels.Selector, labels.Selector) (metrics.PodMetricsInfo, time.Time, error) {
	return nil, time.Time{}, errors.New("not used")
}

func (s *service) GetObjectMetric(string, string, *autoscalingv2.CrossVersionObjectReference, labels.Selector) (int64, time.Time, error) {
	return 0, time.Time{}, errors.New("not used")
}

func run(t *testing.T, name string, target int64, min, max, replicas int32, minutes int, load func(second float64) (int64, bool)) vector {
	out := vector{Name: name, Target: target, Min: min, Max: max}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		object := &autoscalingv2.HorizontalPodAutoscaler{
			ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "intent"},
			Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
				ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "intent"},
				MinReplicas:    &min,
				MaxReplicas:    max,
				Metrics: []autoscalingv2.MetricSpec{{
					Type: autoscalingv2.ExternalMetricSourceType,
					External: &autoscalingv2.ExternalMetricSource{
						Metric: autoscalingv2.MetricIdentifier{Name: "qps", Selector: &metav1.LabelSelector{}},
						Target: autoscalingv2.MetricTarget{
							Type: autoscalingv2.AverageValueMetricType, AverageValue: resource.NewMilliQuantity(target, resource.DecimalSI),
						},
					},
				}},
			},
		}
		client := fake.NewClientset(object)
		factory := informers.NewSharedInformerFactory(client, 0)
		mapper := meta.NewDefaultRESTMapper([]schema.GroupVersion{{Group: "apps", Version: "v1"}})
		mapper.Add(schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}, meta.RESTScopeNamespace)
		service := &service{began: time.Now(), spec: replicas, status: replicas, load: load}
		// The defaults of kube-controller-manager.
		controller := podautoscaler.NewHorizontalController(ctx, client.CoreV1(), service, client.AutoscalingV2(), mapper, service,
			factory.Autoscaling().V2().HorizontalPodAutoscalers(), factory.Core().V1().Pods(),
			15*time.Second, 5*time.Minute, 0.1, 5*time.Minute, 30*time.Second)
		factory.Start(ctx.Done())
		factory.WaitForCacheSync(ctx.Done())
		go controller.Run(ctx, 1)
		for range minutes * 60 {
			time.Sleep(time.Second)
			synctest.Wait()
			// Pods come and go by one a second.
			if service.status < service.spec {
				service.status++
			} else if service.status > service.spec {
				service.status--
			}
		}
		out.Steps = service.steps
		cancel()
		factory.Shutdown()
	})
	return out
}

func TestWrite(t *testing.T) {
	// They would sleep until the last error, which was in real time.
	utilruntime.ErrorHandlers = nil
	random := rand.New(rand.NewSource(8))
	noisy := func(load float64) int64 { return int64(math.Round(1000 * load * (0.9 + 0.2*random.Float64()))) }
	always := func(load func(float64) float64) func(float64) (int64, bool) {
		return func(second float64) (int64, bool) { return noisy(load(second)), true }
	}
	vectors := []vector{
		run(t, "step", 70_000, 1, 100, 1, 20, always(func(s float64) float64 {
			if s < 120 {
				return 10
			}
			return 3000
		})),
		run(t, "spikes", 70_000, 2, 30, 5, 60, always(func(s float64) float64 {
			if math.Mod(s, 600) < 60 {
				return 2000
			}
			return 300
		})),
		run(t, "wave", 35_500, 1, 100, 20, 60, always(func(s float64) float64 { return 1500 + 1400*math.Sin(s/300) })),
		run(t, "gaps", 70_000, 1, 50, 10, 30, func(s float64) (int64, bool) {
			return noisy(400 + s/2), math.Mod(s, 200) < 120
		}),
		run(t, "bounds", 50_000, 4, 12, 8, 30, always(func(s float64) float64 { return 800 * math.Abs(math.Sin(s/200)) })),
	}
	file, err := os.Create("../hpa.json")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := json.NewEncoder(file).Encode(vectors); err != nil {
		t.Fatal(err)
	}
}
