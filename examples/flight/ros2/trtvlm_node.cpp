// Answers about the newest image, in a thread of its own.
#include <condition_variable>
#include <cstdio>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include <rclcpp/rclcpp.hpp>
#include <sensor_msgs/msg/image.hpp>
#include <std_msgs/msg/string.hpp>

#include <trtvlm.hpp>

namespace {

using sensor_msgs::msg::Image;

// The frame of a message; none if its encoding is not one of ours.
std::optional<trtvlm::Frame> frame_of(const Image &image) {
  const auto at = static_cast<std::uint64_t>(rclcpp::Time(image.header.stamp).nanoseconds());
  const unsigned char *data = image.data.data();
  trtvlm::Frame frame;
  if (image.encoding == "rgb8") {
    frame = trtvlm::Frame::rgb(data, image.width, image.height, image.step);
  } else if (image.encoding == "bgr8") {
    frame = trtvlm::Frame::bgr(data, image.width, image.height, image.step);
  } else if (image.encoding == "mono8") {
    frame = trtvlm::Frame::grey(data, image.width, image.height, image.step);
  } else if (image.encoding == "nv12") {
    const std::size_t luma = static_cast<std::size_t>(image.step) * image.height;
    const std::size_t chroma = static_cast<std::size_t>(image.step) * ((image.height + 1) / 2);
    if (image.data.size() < luma + chroma) return std::nullopt;
    frame = trtvlm::Frame::nv12(data, data + luma, image.width, image.height, image.step, image.step);
    return frame.at(at);
  } else {
    return std::nullopt;
  }
  // A message says how much it has; what it says of its rows is checked against that.
  frame.raw.planes[0].length = image.data.size();
  return frame.at(at);
}

class Node : public rclcpp::Node {
public:
  explicit Node(trtvlm::Session session) : rclcpp::Node("trtvlm"), session_(std::move(session)) {
    declare_parameter("question", "describe the scene");
    declare_parameter("deadline_ms", 100);
    answers_ = create_publisher<std_msgs::msg::String>("answer", 10);
    images_ = create_subscription<Image>("image", rclcpp::SensorDataQoS(), [this](Image::ConstSharedPtr image) {
      const std::lock_guard<std::mutex> lock(mutex_);
      dropped_ += newest_ != nullptr;
      newest_ = std::move(image);
      arrived_.notify_one();
    });
    thread_ = std::thread([this] { run(); });
  }

  ~Node() override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    arrived_.notify_one();
    session_.cancel();
    thread_.join();
  }

private:
  void run() {
    for (;;) {
      Image::ConstSharedPtr image;
      std::uint64_t dropped = 0;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        arrived_.wait(lock, [this] { return stop_ || newest_ != nullptr; });
        if (stop_) return;
        image = std::move(newest_);
        dropped = dropped_;
      }
      answer(*image, dropped);
    }
  }

  void answer(const Image &image, std::uint64_t dropped) {
    const auto frame = frame_of(image);
    if (!frame) {
      RCLCPP_WARN_ONCE(get_logger(), "images of encoding %s are not supported", image.encoding.c_str());
      return;
    }
    const std::string text = get_parameter("question").as_string();
    trtvlm::Question question(text);
    const auto deadline = std::chrono::milliseconds(get_parameter("deadline_ms").as_int());
    if (deadline.count() > 0) question.deadline(deadline);
    const auto found = session_.ask(*frame, question);
    if (!found) {
      RCLCPP_ERROR(get_logger(), "%s", found.error().message.c_str());
      return;
    }
    std_msgs::msg::String message;
    message.data = "{\"answer\":\"";
    for (const char c : found->text) {
      if (c == '"' || c == '\\') message.data += '\\';
      message.data += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
    char rest[160];
    std::snprintf(rest, sizeof rest, "\",\"stop\":\"%s\",\"total_ms\":%.2f,\"stamp_ns\":%llu,\"dropped\":%llu}",
                  std::string(found->stop()).c_str(), static_cast<double>(found->result.total_ns) / 1e6,
                  static_cast<unsigned long long>(found->result.timestamp_ns), static_cast<unsigned long long>(dropped));
    message.data += rest;
    answers_->publish(message);
  }

  trtvlm::Session session_;
  rclcpp::Publisher<std_msgs::msg::String>::SharedPtr answers_;
  rclcpp::Subscription<Image>::SharedPtr images_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  Image::ConstSharedPtr newest_;
  std::uint64_t dropped_ = 0;
  bool stop_ = false;
  std::thread thread_;
};

} // namespace

int main(int argc, char **argv) {
  rclcpp::init(argc, argv);
  const auto parameters = std::make_shared<rclcpp::Node>("trtvlm_parameters");
  const std::string model = parameters->declare_parameter("model", std::string());
  auto session = trtvlm::Session::open(model);
  if (!session) {
    RCLCPP_FATAL(parameters->get_logger(), "%s", session.error().message.c_str());
    return 1;
  }
  rclcpp::spin(std::make_shared<Node>(std::move(*session)));
  rclcpp::shutdown();
  return 0;
}
